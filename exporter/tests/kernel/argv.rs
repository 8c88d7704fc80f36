//! Arguments, byte for byte.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use namespan::config::Probes;

use crate::helpers::helper;
use crate::watch::{Told, Watch, execs};
use crate::workload::{BUSYBOX, run};

/// Runs `busybox true` with these, and expects exactly what is kept of them.
#[track_caller]
fn are_told(watch: &mut Watch, limit: usize, arguments: &[&[u8]]) -> Told {
    let pid = run(Command::new(BUSYBOX).arg("true").args(arguments.iter().map(|bytes| OsStr::from_bytes(bytes))));
    let told = watch.find(execs(pid));
    let all: Vec<_> = [&b"/bin/busybox"[..], b"true"].into_iter().chain(arguments.iter().copied()).collect();
    let bytes: Vec<_> = all.iter().flat_map(|argument| [argument, &b"\0"[..]].concat()).collect();
    let args = told.exec().args;
    assert_eq!((args.len, args.argc as usize), (bytes.len() as u64, all.len()));
    assert_eq!(args.truncated(), bytes.len() > limit);
    assert_eq!(told.event().process.flags, 0);
    if args.truncated() {
        assert!(args.head == &bytes[..limit - limit / 2], "{} bytes of head", args.head.len());
        assert!(args.tail == &bytes[bytes.len() - limit / 2..], "{} bytes of tail", args.tail.len());
    } else {
        assert!(args.head == bytes && args.tail.is_empty());
        assert!(args.iter().eq(all));
    }
    told
}

#[test]
fn few_and_many_arguments_empty_ones_and_any_bytes_are_told() {
    let Some(mut watch) = Watch::default() else { return };
    let limit = 32 << 10;
    are_told(&mut watch, limit, &[]);
    are_told(&mut watch, limit, &[b"", b"", b"x", b""]);
    are_told(&mut watch, limit, &[b"\xff\xfe", b"\xc3", b"\x1b[2J\x07", "é".as_bytes(), b"a\nb"]);
    are_told(&mut watch, limit, &vec![&b"five"[..]; 5_000]);
    are_told(&mut watch, limit, &vec![&b""[..]; 5_000]);
    watch.end_whole();
}

#[test]
fn of_200_kib_the_head_and_the_tail_are_kept_by_the_limit() {
    let numbered: Vec<_> = (0..2_000).map(|number| format!("{number:0>100}").into_bytes()).collect();
    let numbered: Vec<_> = numbered.iter().map(Vec::as_slice).collect();
    let one = vec![b'x'; 120 << 10];
    for limit in [0, 1, 2, 16, 17, 32 << 10, 65_535] {
        let probes = Probes { args_limit: u32::try_from(limit).unwrap(), ..Probes::default() };
        let Some(mut watch) = Watch::start(&probes) else { return };
        are_told(&mut watch, limit, &[]);
        are_told(&mut watch, limit, &numbered);
        are_told(&mut watch, limit, &[&one, b"end"]);
        watch.end_whole();
    }
}

#[test]
fn what_just_fits_the_limit_is_whole_and_a_byte_more_is_not() {
    let fixed = b"/bin/busybox\0true\0\0".len();
    for limit in [64, 32 << 10, 65_535] {
        let probes = Probes { args_limit: u32::try_from(limit).unwrap(), ..Probes::default() };
        let Some(mut watch) = Watch::start(&probes) else { return };
        let argument = vec![b'y'; limit - fixed + 1];
        are_told(&mut watch, limit, &[&argument[1..]]);
        are_told(&mut watch, limit, &[&argument]);
        watch.end_whole();
    }
}

#[test]
fn an_exec_without_any_argument_is_told() {
    let Some(mut watch) = Watch::default() else { return };
    let mut child = helper("exec_without_arguments", &[BUSYBOX]).stderr(std::process::Stdio::null()).spawn().unwrap();
    child.wait().unwrap();
    let pid = child.id();
    let told = watch.find(|event| execs(pid)(event) && event.execs() == 2);
    let args = told.exec().args;
    // Since Linux 5.18 there is always a first one.
    assert!(matches!((args.argc, args.len, args.head), (1, 1, b"\0") | (0, 0, b"")), "{args:?}");
    assert_eq!(args.iter().count(), args.argc as usize);
    watch.end_whole();
}
