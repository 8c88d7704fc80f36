//! More than there is room for, and as much as there is room for.

use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use namespan::attach::attach;
use namespan::config::Probes;
use namespan::event::{Event, ProcessId};
use namespan_ebpf::wire::{Counter, Program};

use crate::watch::{Watch, exec, execs_as, exit, ready, slowness};
use crate::workload::{BUSYBOX, run_true, token};

#[test]
fn what_finds_no_room_in_the_smallest_ring_is_counted() {
    let execs = 2_000 / u64::from(slowness());
    let Some(watch) = Watch::start(&Probes { ring_bytes: 4096, ..Probes::default() }) else { return };
    let token = token();
    for _ in 0..execs {
        run_true(BUSYBOX, &token);
    }
    // Which checks that what is neither filtered nor lost was delivered, and that it decodes.
    let ended = watch.end();
    for program in [Program::Exec, Program::Exit] {
        let of = |counter| ended.counted.of(program, counter);
        assert!(of(Counter::Triggered) - of(Counter::Filtered) >= execs);
        assert_eq!(of(Counter::LostRingFull), ended.counted.lost(program), "{:?}", ended.counted);
        assert!(of(Counter::Delivered) >= 1, "{:?}", ended.counted);
    }
    let filled: usize = ended.told.iter().map(|told| told.event().process.len as usize).sum();
    assert!(filled > 4096 / 2 && filled <= 4096, "{filled} bytes");
}

#[test]
fn of_20_000_execs_at_full_speed_none_is_lost() {
    const THREADS: usize = 2;
    let execs = 20_000 / slowness() as usize;
    let Some(mut watch) = Watch::default() else { return };
    let token = token();
    std::thread::scope(|scope| {
        let storm = || {
            for _ in 0..execs / THREADS {
                let mut command = Command::new(BUSYBOX);
                command.args(["true", &token]).stdin(Stdio::null());
                assert!(command.status().unwrap().success());
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(storm)).collect();
        while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            watch.pump();
        }
    });
    let ended = watch.end_whole();
    let ours: HashSet<ProcessId> = ended.all(execs_as(BUSYBOX, &token)).map(crate::watch::Told::id).collect();
    let is_ours = |event: &Event<'_>| ours.contains(&event.id());
    assert_eq!(ours.len(), execs);
    assert_eq!(ended.count(|event| is_ours(event) && exec(event).is_some()), execs);
    assert_eq!(ended.count(|event| is_ours(event) && exit(event).is_some()), execs);
    assert_eq!(ended.counted.of(Program::Exec, Counter::Incomplete), 0);
}

#[test]
fn from_nothing_to_attached_takes_seconds_at_most() {
    if !ready() {
        return;
    }
    let start = Instant::now();
    let attached = attach(&Probes { failed_execs: true, ..Probes::default() }).unwrap();
    let took = start.elapsed();
    drop(attached);
    // For the table of kernels.
    eprintln!("measured: load {} ms", took.as_millis());
    assert!(took < Duration::from_secs(5) * slowness(), "{took:?}");
}
