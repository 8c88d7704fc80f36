//! Directories and disks that are not as they should be.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::statvfs;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::geteuid;

use super::*;

fn refusal(settings: &config::Spool) -> SpoolError {
    open(Signal::Logs, "main", LIMITS, settings).map(|_| ()).unwrap_err()
}

/// Whether what takes root can be tested; where it must be, it has to.
fn may(what: &str, is_possible: bool) -> bool {
    assert!(is_possible || std::env::var_os("NAMESPAN_REQUIRE_ALL").is_none(), "{what}");
    if !is_possible {
        eprintln!("skipped: {what}");
    }
    is_possible
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn directories_and_files_are_ours_alone() {
    let rig = Rig::new();
    let mut run = rig.open();
    run.push(Class::Exec, 1, 1);
    rig.step(&mut run);
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
    let below = rig.settings.directory.join("main/logs");
    for directory in [&rig.settings.directory, &rig.settings.directory.join("main"), &below] {
        assert_eq!(mode(directory), 0o700, "{}", directory.display());
    }
    assert_eq!((mode(&rig.files()[0]), mode(&below.join("lock"))), (0o600, 0o600));
}

#[test]
fn a_directory_that_others_write_to_is_refused_at_every_level() {
    let rig = Rig::new();
    rig.finish(rig.open());
    for below in ["", "main", "main/logs"] {
        let path = rig.settings.directory.join(below);
        for mode in [0o720, 0o702, 0o1777] {
            chmod(&path, mode);
            let error = refusal(&rig.settings);
            assert!(
                matches!(&error, SpoolError::Writable { path: found, mode: m } if found.components().eq(path.components()) && *m == mode)
            );
            assert!(error.to_string().contains("chmod go-w"), "{error}");
        }
        chmod(&path, 0o700);
    }
    rig.finish(rig.open());
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    if !may("only root gives directories away", geteuid().is_root()) {
        return;
    }
    let rig = Rig::new();
    rig.finish(rig.open());
    chown(rig.settings.directory.join("main"), Some(65_534), None).unwrap();
    let error = refusal(&rig.settings);
    assert!(matches!(error, SpoolError::Foreign { owner: 65_534, us: 0, .. }), "{error}");
}

#[test]
fn what_is_no_directory_is_refused_and_names_lead_nowhere_else() {
    let rig = Rig::new();
    fs::write(&rig.settings.directory, "").unwrap();
    assert!(matches!(refusal(&rig.settings), SpoolError::Unusable { .. }));
    fs::remove_file(&rig.settings.directory).unwrap();
    for name in ["..", ".", "", "a/b", "/tmp"] {
        let error = open(Signal::Logs, name, LIMITS, &rig.settings).map(|_| ()).unwrap_err();
        assert!(matches!(error, SpoolError::Unusable { .. }), "{name:?}");
    }
    let elsewhere = rig.directory.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, rig.settings.directory.join("main")).unwrap();
    assert!(matches!(refusal(&rig.settings), SpoolError::Unusable { .. }));
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[test]
fn a_second_user_of_the_directory_is_refused_until_the_first_has_ended() {
    let rig = Rig::new();
    let run = rig.open();
    let error = refusal(&rig.settings);
    assert!(matches!(&error, SpoolError::InUse { path } if *path == rig.settings.directory.join("main/logs")));
    assert!(error.to_string().contains("in use by another Namespan: end that one"), "{error}");
    // Another process sees the same.
    let lock = rig.settings.directory.join("main/logs/lock");
    let locks = |lock: &Path| Command::new("flock").arg("--nonblock").arg(lock).arg("true").status().unwrap().success();
    assert!(!locks(&lock));
    // Other queues are in no one's way.
    drop(open(Signal::Traces, "main", LIMITS, &rig.settings).unwrap());
    drop(open(Signal::Logs, "other", LIMITS, &rig.settings).unwrap());
    rig.finish(run);
    rig.finish(rig.open());
    let deadline = Instant::now() + Duration::from_secs(20);
    while !locks(&lock) {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn files_of_others_are_left_alone() {
    let rig = Rig::new();
    let mut run = rig.open();
    run.push(Class::Exec, 1, 100);
    rig.step(&mut run);
    rig.finish(run);
    let below = rig.settings.directory.join("main/logs");
    let target = rig.directory.path().join("target");
    fs::write(&target, "precious").unwrap();
    let strange: Vec<_> = [
        ("exec-1.segment", "x"),
        ("exec-00000000000000000007.segment.bak", "x"),
        ("span-00000000000000000007.segment", "another signal's"),
        ("exit-00000000000000000008.segment", &"no segment at all, and long enough to be one".repeat(3)),
        ("notes.txt", ""),
        ("exec-99999999999999999999999.segment", "x"),
    ]
    .map(|(name, content)| (below.join(name), content.to_owned()))
    .into();
    for (path, content) in &strange {
        fs::write(path, content).unwrap();
    }
    symlink(&target, below.join("exec-00000000000000000009.segment")).unwrap();
    fs::create_dir(below.join("exec-00000000000000000010.segment")).unwrap();
    let mut run = rig.open();
    run.push(Class::Exec, 2, 100);
    run.push(Class::Exit, 4, 100);
    assert_eq!(run.send_all(&rig), [1, 2, 4]);
    rig.finish(run);
    for (path, content) in &strange {
        assert_eq!(fs::read_to_string(path).unwrap(), *content);
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
}

#[test]
fn a_torn_end_is_cut_off_and_no_loss() {
    let rig = Rig::new();
    let mut run = rig.open();
    run.push(Class::Exec, 3, 100);
    rig.step(&mut run);
    rig.finish(run);
    let file = &rig.files()[0];
    let whole = fs::read(file).unwrap();
    for torn in [1, 63, 64, 100] {
        let mut bytes = whole.clone();
        bytes.extend(&whole[64..64 + torn]);
        fs::write(file, &bytes).unwrap();
        let run = rig.open();
        let counts = run.check();
        let spool = counts.spool.unwrap();
        assert_eq!((spool.recovered, spool.cuts, counts.dropped_total()), (3, 1, 0), "{torn}");
        assert_eq!(fs::read(file).unwrap(), whole);
    }
}

#[test]
fn a_damaged_segment_costs_its_rest_and_each_record_is_counted() {
    let rig = Rig::new();
    let mut run = rig.open();
    for records in [1, 2, 4, 8] {
        run.push(Class::Exec, records, 100);
    }
    run.push(Class::Note, 16, 100);
    rig.step(&mut run);
    run.pop().unwrap().deliver(1, 0);
    rig.step(&mut run);
    rig.finish(run);
    let file = rig.files().into_iter().find(|path| path.to_str().unwrap().contains("exec-")).unwrap();
    let whole = fs::read(&file).unwrap();
    let damage = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&file, &bytes).unwrap();
    };
    // The head of the second one: those behind it cannot be found any more.
    damage(64 + 164 + 20);
    let mut run = rig.open();
    assert_eq!(run.dropped(), [(Reason::SpoolCorrupt, 14)]);
    assert_eq!(run.check().spool.unwrap().recovered, 30);
    assert_eq!(run.send_all(&rig), [16]);
    rig.finish(run);
    // It is counted once.
    let run = rig.open();
    assert_eq!((run.dropped(), run.check().spool.unwrap().recovered), (Vec::new(), 0));
    rig.finish(run);
    // The body of the second one: it alone.
    damage(64 + 164 + 64 + 50);
    let mut run = rig.open();
    assert_eq!(run.send_all(&rig), [4, 8]);
    assert_eq!(run.dropped(), [(Reason::SpoolCorrupt, 2)]);
    assert_eq!(rig.finish(run).spool.unwrap().recovered, 14);
}

#[test]
fn damage_while_it_is_in_use_is_noticed_and_counted() {
    let mut rig = Rig::new();
    rig.limits = config::Queue { max_bytes: 1000, ..LIMITS };
    let mut run = rig.open();
    for records in [1, 2, 4, 8, 16, 32, 64] {
        run.push(Class::Exec, records, 300);
        rig.step(&mut run);
    }
    let file = &rig.files()[0];
    let mut bytes = fs::read(file).unwrap();
    // Heads of the fifth and body of the fourth.
    bytes[64 + 4 * 364 + 9] ^= 1;
    bytes[64 + 3 * 364 + 99] ^= 1;
    fs::write(file, &bytes).unwrap();
    assert_eq!(run.send_all(&rig), [1, 2, 4]);
    assert_eq!(run.dropped(), [(Reason::SpoolCorrupt, 8 + 16 + 32 + 64)]);
    // It goes on.
    run.push(Class::Exec, 128, 300);
    assert_eq!(run.send_all(&rig), [128]);
    rig.finish(run);
    assert_eq!(rig.open().check().spool.unwrap().recovered, 0);
}

/// What is on disk of an earlier run: three execs in a file that can't be opened for now, and a note.
fn unreadable() -> (Rig, Run, impl Fn()) {
    let rig = Rig::new();
    let mut run = rig.open();
    for (class, records) in [(Class::Exec, 1), (Class::Exec, 2), (Class::Note, 4)] {
        run.push(class, records, 100);
    }
    rig.step(&mut run);
    rig.finish(run);
    let run = rig.open();
    let file = rig.files().into_iter().find(|path| path.to_str().unwrap().contains("exec-")).unwrap();
    let aside = rig.directory.path().join("aside");
    fs::rename(&file, &aside).unwrap();
    fs::create_dir(&file).unwrap();
    let put_back = move || {
        fs::remove_dir(&file).unwrap();
        fs::rename(&aside, &file).unwrap();
    };
    (rig, run, put_back)
}

#[test]
fn what_cannot_be_read_for_now_waits_and_holds_up_nothing_else() {
    let (mut rig, mut run, put_back) = unreadable();
    // Nor can it be written, as its file is the last one.
    run.push(Class::Exec, 8, 100);
    assert_eq!(run.send_all(&rig), [4, 8]);
    let errors = |run: &Run| run.check().spool.unwrap().errors;
    let before = errors(&run);
    assert!(before >= 2);
    for _ in 0..10 {
        rig.step(&mut run);
    }
    assert_eq!((run.queue.depth().spooled, run.dropped(), errors(&run)), (3, Vec::new(), before));
    assert!(run.spooler.step(rig.now, rig.moment).unwrap() > rig.now);
    // What comes has a file of its own.
    rig.pass(RETRY);
    run.push(Class::Exec, 16, 100);
    assert_eq!(run.send_all(&rig), [16]);
    assert_eq!((errors(&run), run.queue.depth().spooled), (before + 1, 3));
    put_back();
    assert!(run.send_all(&rig).is_empty());
    rig.pass(RETRY);
    assert_eq!(run.send_all(&rig), [1, 2]);
    let counts = rig.finish(run);
    assert_eq!((counts.exported, counts.dropped_total(), counts.spool.unwrap().records), (31, 0, 0));
}

#[test]
fn what_was_forgotten_before_the_place_that_cannot_be_read_is_read_again_with_it() {
    let (rig, counters) = (Rig::new(), Counters::of_spool());
    let (mut store, _) = Store::open(Signal::Logs, "main", &rig.settings, (1, &counters)).unwrap();
    let append = |store: &mut Store, number| store.append(number, &batch(Class::Exec, 1, 100), rig.moment).unwrap();
    let next = |store: &mut Store| match store.next(Class::Exec) {
        Next::Batch(number, record, kept) => {
            store.pass(&record, &kept);
            Some(number)
        }
        Next::Nothing => None,
        other @ (Next::Damaged(_) | Next::Unread(..)) => panic!("{other:?}"),
    };
    let (first, second) = (append(&mut store, 1), append(&mut store, 2));
    assert_eq!(next(&mut store), Some(1));
    let error = io::Error::from(rustix::io::Errno::IO);
    assert!(store.set_aside(second.place, &error, rig.now));
    append(&mut store, 3);
    // Memory has no room for the first one, and then has.
    store.rewind(first.place);
    assert_eq!((next(&mut store), next(&mut store)), (Some(3), None));
    store.take_back(rig.now + RETRY);
    assert_eq!(
        [next(&mut store), next(&mut store), next(&mut store), next(&mut store)],
        [1, 2, 3, 0].map(|n| (n > 0).then_some(n))
    );
}

#[test]
fn what_can_be_read_no_more_is_given_up_when_it_would_be_too_old() {
    let (mut rig, mut run, _) = unreadable();
    assert_eq!(run.send_all(&rig), [4]);
    rig.pass(HOUR);
    rig.step(&mut run);
    assert_eq!(run.dropped(), []);
    rig.pass(RETRY);
    rig.step(&mut run);
    assert_eq!((run.dropped(), run.queue.depth().spooled), (vec![(Reason::SpoolCorrupt, 3)], 0));
}

#[test]
fn a_file_that_is_gone_is_lost_at_once() {
    let (rig, mut run, put_back) = unreadable();
    put_back();
    for file in rig.files() {
        fs::remove_file(file).unwrap();
    }
    assert!(run.send_all(&rig).is_empty());
    assert_eq!(run.dropped(), [(Reason::SpoolCorrupt, 7)]);
}

/// A small file system of its own.
struct Small(PathBuf);

impl Small {
    /// With a rig whose spool is there. `None`: it can't be mounted.
    fn rig() -> Option<(Rig, Self)> {
        let rig = Rig::new();
        let at = rig.settings.directory.clone();
        fs::create_dir(&at).unwrap();
        let mounted = mount("namespan-test", &at, "tmpfs", MountFlags::empty(), c"size=256k,mode=0700");
        may("a tmpfs can be mounted", mounted.is_ok()).then_some((rig, Self(at)))
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Leaves no room.
    fn fill(&self) {
        fs::write(self.ballast(), vec![0; 1 << 20]).unwrap_err();
    }

    /// Makes room again. A process that another test starts may hold the file for a moment longer.
    fn clear(&self) {
        let len = fs::metadata(self.ballast()).unwrap().len();
        fs::remove_file(self.ballast()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let free = || statvfs(&self.0).map(|of| of.f_bavail * of.f_frsize).unwrap();
        while free() < len {
            assert!(Instant::now() < deadline, "{} of {len} bytes are free", free());
            std::thread::yield_now();
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_costs_nothing_that_memory_can_hold_and_delivery_goes_on() {
    let Some((mut rig, small)) = Small::rig() else { return };
    rig.limits = config::Queue { max_bytes: 100_000, ..LIMITS };
    let mut run = rig.open();
    run.push(Class::Exec, 1, 20_000);
    rig.step(&mut run);
    small.fill();
    let before = fs::read(&rig.files()[0]).unwrap();
    for records in [2, 4, 8] {
        run.push(Class::Exec, records, 30_000);
        rig.step(&mut run);
    }
    // What was written in part is cut off again.
    assert_eq!(fs::read(&rig.files()[0]).unwrap(), before);
    assert_eq!((run.dropped(), run.queue.depth().records), (Vec::new(), 15));
    assert_eq!(run.check().spool.unwrap().errors, 1);
    // Memory is bounded as ever; what is on disk too goes from memory first.
    run.push(Class::Exec, 16, 30_000);
    rig.step(&mut run);
    assert_eq!(run.dropped(), [(Reason::QueueFull, 2)]);
    run.push(Class::Exit, 32, 30_000);
    rig.step(&mut run);
    assert_eq!(run.dropped(), [(Reason::QueueFull, 2 + 32)]);
    // Sent without having been on disk.
    let mut sent = Vec::new();
    for _ in 0..2 {
        let mut taken = run.pop().unwrap();
        sent.push(taken.batch().records());
        taken.deliver(u32::MAX, 0);
        drop(taken);
        rig.step(&mut run);
    }
    assert_eq!(sent, [1, 4]);
    // What comes back was on no disk, and has its place all the same.
    drop(run.pop().unwrap());
    // The disk has room again, and after a while this is noticed.
    small.clear();
    rig.pass(RETRY);
    rig.step(&mut run);
    let counts = rig.finish(run);
    assert_eq!((counts.exported, counts.spool.unwrap().records), (5, 24));
    let mut run = rig.open();
    assert_eq!(run.send_all(&rig), [8, 16]);
    rig.finish(run);
}

#[test]
fn a_disk_that_is_still_full_at_the_end_is_a_loss_that_is_counted() {
    let Some((mut rig, small)) = Small::rig() else { return };
    rig.limits = config::Queue { max_bytes: 100_000, ..LIMITS };
    let mut run = rig.open();
    run.push(Class::Exec, 1, 20_000);
    rig.step(&mut run);
    small.fill();
    run.push(Class::Exec, 2, 30_000);
    rig.step(&mut run);
    let counts = rig.finish(run);
    assert_eq!(counts.spool.unwrap().records, 1);
    assert_eq!(counts.dropped.into_iter().collect::<Vec<_>>(), [(Reason::Shutdown, 2)]);
}

#[test]
fn a_disk_without_room_for_a_name_loses_no_number() {
    let Some((rig, small)) = Small::rig() else { return };
    let mut run = rig.open();
    small.fill();
    for records in [1, 2] {
        run.push(Class::Exec, records, 1000);
    }
    rig.step(&mut run);
    // Not even an empty segment is left.
    assert_eq!(rig.files(), Vec::<PathBuf>::new());
    assert_eq!(run.pop().unwrap().batch().records(), 1);
    assert_eq!(run.send_all(&rig), [1, 2]);
    drop(run);
}

#[test]
fn what_is_settled_makes_room_on_a_full_disk() {
    let Some((mut rig, small)) = Small::rig() else { return };
    let mut run = rig.open();
    run.push(Class::Note, 1, 30_000);
    assert_eq!(run.send_all(&rig), [1]);
    small.fill();
    run.push(Class::Exec, 2, 20_000);
    rig.step(&mut run);
    assert_eq!((run.check().spool.unwrap().errors, rig.files().len()), (1, 0));
    rig.pass(RETRY);
    rig.step(&mut run);
    let counts = rig.finish(run);
    assert_eq!((counts.dropped_total(), counts.spool.unwrap().records), (0, 2));
}
