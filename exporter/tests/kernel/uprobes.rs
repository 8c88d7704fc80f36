//! Uprobes on a program of our own, `uprobes.c`: every hit is told with its values, once, and counted.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use namespan::enrich::container::Container;
use namespan::event::ProcessId;
use namespan::uprobe::attach::{
    At, Counted, Limits, Link, PlaceId, PlaceSpec, Scope, UprobeError, Uprobes, is_supported,
};
use namespan::uprobe::detach::Detacher;
use namespan::uprobe::follow::{Answer, Follower, Sighting, Who};
use namespan::uprobe::hit::{self, Captured, Hit, Value};
use namespan::uprobe::place::Places;
use namespan::uprobe::registers::register;
use namespan::uprobe::root::Root;
use namespan::uprobe::spec::{Binary, Capture, Function, Kind, Rate, Target, Type, Uprobe};
use namespan_ebpf::uprobe_wire::Counter;
use namespan_ebpf::wire::CgroupKey;

use crate::watch::{ready, slowness};
use crate::workload::{Cgroup, cgroup1, cgroup2, run, token};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel/uprobes.c");

/// A folder of its own, until the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(token());
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// The program, or a library of the same functions, as a file that nobody else runs.
    fn built(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        match std::env::var_os(BUILT) {
            Some(built) => drop(fs::copy(Path::new(&built).join(name), &path).unwrap()),
            None => build(name, &path),
        }
        path
    }
}

/// Set where there is no compiler: a folder with what [`build_all`] made.
const BUILT: &str = "NAMESPAN_KERNEL_TEST_PROGRAMS";
const PROGRAM: &str = "program";
const LIBRARY: &str = "library.so";

/// Everything that these tests compile.
pub fn build_all(folder: &Path) {
    for name in [PROGRAM, LIBRARY] {
        build(name, &folder.join(name));
    }
}

fn build(name: &str, path: &Path) {
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-fno-optimize-sibling-calls", "-pthread", "-rdynamic"]);
    if name == LIBRARY {
        cc.args(["-shared", "-fPIC"]);
    }
    run(cc.arg("-o").arg(path).args([SOURCE, "-ldl"]));
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _kept = fs::remove_dir_all(&self.0);
    }
}

/// What an inspecting tool prints.
fn printed(tool: &str, flags: &str, path: &Path) -> String {
    let output = Command::new(tool).arg(flags).arg(path).stderr(Stdio::inherit()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Where a symbol lies in the file.
fn offset(path: &Path, symbol: &str) -> u64 {
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let symbols = printed("nm", "-D", path);
    let line = symbols.lines().find(|line| line.split(' ').next_back() == Some(symbol)).unwrap();
    let address = hex(line.split(' ').next().unwrap());
    let segments = printed("readelf", "-lW", path);
    let segment = segments.lines().filter(|line| line.trim_start().starts_with("LOAD")).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (offset, start, size) = (hex(fields[1]), hex(fields[2]), hex(fields[4]));
        (start..start + size).contains(&address).then(|| address - start + offset)
    });
    segment.unwrap()
}

fn probe(kind: Kind, args: &[Type], returns: Option<Type>) -> Uprobe {
    let function = Function::Symbol("by its offset".into());
    let mut probe = Uprobe::new("test".into(), Target::Host, Binary::Path("/opened".into()), function);
    probe.kind = kind;
    probe.rate = None;
    let capture = |position, value| Capture { name: format!("v{position}"), position, value };
    probe.args = (0..).zip(args).map(|(position, value)| capture(position, *value)).collect();
    probe.returns = returns.map(|value| capture(0, value));
    probe
}

/// `None`: these tests can't run here, or this kernel has no uprobes that they are about.
fn loaded(limits: &Limits) -> Option<(Uprobes, RingBuf<MapData>)> {
    if !ready() {
        return None;
    }
    if !is_supported() {
        eprintln!("skipped: {}", UprobeError::NoCookie);
        return None;
    }
    Some(Uprobes::load(limits).unwrap())
}

/// The kernel side with what it has told.
struct Bench {
    uprobes: Uprobes,
    ring: RingBuf<MapData>,
    folder: Folder,
    program: PathBuf,
}

impl Bench {
    fn new() -> Option<Self> {
        Self::with(&Limits { ring_bytes: 1 << 20, places: 16, cgroups: 16, calls: 4096 })
    }

    fn with(limits: &Limits) -> Option<Self> {
        let (uprobes, ring) = loaded(limits)?;
        let folder = Folder::new();
        let program = folder.built(PROGRAM);
        Some(Self { uprobes, ring, folder, program })
    }

    /// A place at a function of the program.
    fn attach(&mut self, function: &str, probe: &Uprobe) -> (PlaceId, Link) {
        let program = self.program.clone();
        self.attach_to(&program, function, &PlaceSpec::of_function(probe, Scope::Host).unwrap())
    }

    fn attach_to(&mut self, path: &Path, function: &str, spec: &PlaceSpec) -> (PlaceId, Link) {
        let file = File::open(path).unwrap();
        let place = self.uprobes.place(spec).unwrap();
        let at = At { offset: offset(path, function), semaphore: None };
        (place, self.uprobes.attach(file.as_fd(), place, at).unwrap())
    }

    fn run(&self, arguments: &[&str]) -> u32 {
        run(Command::new(&self.program).args(arguments))
    }

    fn told(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        while let Some(record) = self.ring.next() {
            told.push(Told(record.to_vec()));
        }
        told
    }

    /// Whose outcomes must add up.
    fn counted(&self, place: PlaceId) -> Counted {
        let counted = self.uprobes.counted(place).unwrap();
        let sum: u64 = counted.outcomes().map(|(_, count)| count).sum();
        assert_eq!(sum, counted.triggered(), "{counted:?}");
        counted
    }
}

struct Told(Vec<u8>);

impl Told {
    fn hit(&self) -> Hit<'_> {
        hit::decode(&self.0).unwrap()
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as a hit has it")]
fn whole(value: Value<'_>) -> Option<Captured<'_>> {
    Some(Captured { value, truncated: false })
}

#[test]
fn uprobe_integers_of_every_width_are_told_as_they_are() {
    let Some(mut bench) = Bench::new() else { return };
    let types = [Type::I8, Type::I16, Type::I32, Type::I64, Type::U8, Type::U16, Type::U32, Type::U64];
    let (place, _link) = bench.attach("all_ints", &probe(Kind::Both, &types, Some(Type::I64)));
    let pid = bench.run(&["ints"]);
    let told = bench.told();
    let [told] = &*told else { panic!("{} hits", told.len()) };
    let hit = told.hit();
    let args: Vec<_> = (0..9).map(|index| hit.arg(index)).collect();
    let expected = [
        whole(Value::Int(-1)),
        whole(Value::Int(-300)),
        whole(Value::Int(-70_000)),
        whole(Value::Int(-5_000_000_000)),
        whole(Value::Uint(200)),
        whole(Value::Uint(60_000)),
        whole(Value::Uint(4_000_000_000)),
        whole(Value::Uint(u64::MAX)),
        None,
    ];
    assert_eq!(args, expected);
    let sum = -1 - 300 - 70_000 - 5_000_000_000 + 200 + 60_000 + 4_000_000_000 - 1;
    assert_eq!(hit.returned(), whole(Value::Int(sum)));
    assert!(matches!(hit.kind, hit::Kind::Call { duration_ns: 1..1_000_000_000 }), "{:?}", hit.kind);
    assert_eq!((hit.place, hit.process.tgid, hit.process.tid, hit.process.vpid), (place, pid, pid, pid));
    assert_eq!(hit.process.parent_tgid, std::process::id());
    assert!(hit.comm.starts_with(b"program\0") && hit.process.comm == hit.comm);
    assert_eq!(hit.process.self_exec_id, hit.process.parent_exec_id + 1);
    assert!(hit.process.namespaces.iter().all(|inode| *inode != 0), "{:?}", hit.process);
    assert_eq!(hit.ip & 0xfff, offset(&bench.program, "all_ints") & 0xfff);
    let counted = bench.counted(place);
    assert_eq!((counted.triggered(), counted.of(Counter::Delivered), counted.unpaired()), (1, 1, 0));
}

#[test]
fn uprobe_strings_and_bytes_are_cut_and_flagged_and_never_read_where_nothing_is() {
    let Some(mut bench) = Bench::new() else { return };
    let bytes = Type::Bytes { length: 5 };
    let types = [Type::String, Type::String, Type::String, Type::String, bytes, Type::I32];
    let mut probe = probe(Kind::Entry, &types, None);
    probe.max_string = 10;
    let (place, _link) = bench.attach("strings", &probe);
    bench.run(&["strings"]);
    let told = bench.told();
    let [first, second] = &*told else { panic!("{} hits", told.len()) };
    let all = |hit: &Told| -> Vec<_> { (0..6).map(|index| format!("{:?}", hit.hit().arg(index).unwrap())).collect() };
    let written = |values: [Captured<'_>; 6]| values.map(|value| format!("{value:?}"));
    let cut = Captured { value: Value::Str(b"xxxxxxxxxx"), truncated: true };
    let whole = |value| whole(value).unwrap();
    let fault = whole(Value::Fault { address: 16 });
    let last = [whole(Value::Bytes(b"a\0b")), whole(Value::Int(3))];
    assert_eq!(all(first), written([whole(Value::Str(b"text")), cut, whole(Value::Null), fault, last[0], last[1]]));
    // Exactly as long as is kept; no length is no bytes.
    let empty = whole(Value::Str(b""));
    let last = [whole(Value::Bytes(b"")), whole(Value::Int(-1))];
    assert_eq!(all(second), written([whole(Value::Str(b"0123456789")), empty, empty, empty, last[0], last[1]]));
    assert_eq!(bench.counted(place).of(Counter::Incomplete), 1);
}

#[test]
fn uprobe_long_strings_fill_a_record_and_no_more() {
    let Some(mut bench) = Bench::new() else { return };
    let mut probe = probe(Kind::Both, &[Type::String; 2], Some(Type::I32));
    for capture in &mut probe.args {
        capture.position = 1;
    }
    probe.args = vec![probe.args[0].clone(); 6];
    probe.max_string = 4096;
    let (place, _link) = bench.attach("strings", &probe);
    bench.run(&["strings"]);
    let told = bench.told();
    let hit = told[0].hit();
    let lens: Vec<_> = (0..6)
        .map(|index| match hit.arg(index) {
            Some(Captured { value: Value::Str(bytes), truncated: true }) => bytes.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lens, [4096, 4096, 4096, 4096, 0, 0]);
    assert_eq!(hit.returned(), whole(Value::Int(-7)));
    assert_eq!(bench.counted(place).of(Counter::Delivered), 2);
}

#[test]
fn uprobe_booleans_floats_behind_pointers_and_returned_strings_are_told() {
    let Some(mut bench) = Bench::new() else { return };
    let types = [Type::Bool, Type::F32At, Type::F64At, Type::Pointer];
    let (others, _link) = bench.attach("others", &probe(Kind::Both, &types, Some(Type::Bool)));
    let (greeting, _second) = bench.attach("greeting", &probe(Kind::Return, &[], Some(Type::String)));
    bench.run(&["others"]);
    let told = bench.told();
    let [first, second, third] = &*told else { panic!("{} hits", told.len()) };
    let hit = first.hit();
    let args: Vec<_> = (0..4).map(|index| hit.arg(index)).collect();
    let expected = [Value::Bool(true), Value::F64(1.5), Value::F64(-2.25), Value::Pointer(0x1234)];
    assert_eq!((hit.place, args), (others, expected.map(whole).to_vec()));
    assert_eq!(hit.returned(), whole(Value::Bool(true)));
    assert_eq!((second.hit().kind, second.hit().place), (hit::Kind::Return, greeting));
    assert_eq!(second.hit().returned(), whole(Value::Str(b"hello there")));
    assert_eq!(third.hit().returned(), whole(Value::Null));
    let vector = PlaceSpec::of_function(&probe(Kind::Entry, &[Type::F64], None), Scope::Host);
    assert!(matches!(vector, Err(UprobeError::Vector { .. })), "{vector:?}");
}

#[test]
fn uprobe_recursion_pairs_each_return_with_its_call() {
    let Some(mut bench) = Bench::new() else { return };
    let (place, _link) = bench.attach("descend", &probe(Kind::Both, &[Type::I32], Some(Type::I32)));
    bench.run(&["descend", "20"]);
    let told = bench.told();
    let pairs: Vec<_> = told.iter().map(|told| (told.hit().arg(0), told.hit().returned())).collect();
    let expected: Vec<_> = (0..=20).map(|n| (whole(Value::Int(n)), whole(Value::Int(100 + n)))).collect();
    assert_eq!(pairs, expected);
    let durations: Vec<_> = told.iter().map(|told| told.hit().kind).collect();
    assert!(durations.is_sorted_by_key(|kind| match kind {
        hit::Kind::Call { duration_ns } => *duration_ns,
        hit::Kind::Entry | hit::Kind::Return => panic!(),
    }));
    // The kernel watches 64 returns in a thread.
    bench.run(&["descend", "99"]);
    assert_eq!(bench.told().len(), 64);
    let counted = bench.counted(place);
    assert_eq!((counted.triggered(), counted.unfinished(), counted.unpaired()), (121, 36, 0), "{counted:?}");
}

#[test]
fn uprobe_threads_do_not_mix_their_calls() {
    let times = 500 / slowness() as usize;
    let Some(mut bench) = Bench::with(&Limits { ring_bytes: 16 << 20, ..Limits::default() }) else { return };
    let (place, _link) = bench.attach("descend", &probe(Kind::Both, &[Type::I32], Some(Type::I32)));
    let pid = bench.run(&["threads", &times.to_string()]);
    let told = bench.told();
    let counted = bench.counted(place);
    assert_eq!((told.len(), counted.of(Counter::Delivered)), (times * 16, times as u64 * 16), "{counted:?}");
    for told in &told {
        let hit = told.hit();
        let (Some(Captured { value: Value::Int(n), .. }), Some(Captured { value: Value::Int(returned), .. })) =
            (hit.arg(0), hit.returned())
        else {
            panic!("{hit:?}")
        };
        assert_eq!(returned, 100 + n);
        assert!(hit.process.tgid == pid && hit.process.tid != pid);
    }
    assert_eq!((counted.unfinished(), counted.unpaired()), (0, 0));
}

#[test]
fn uprobe_frames_that_are_jumped_over_end_nothing_and_mix_up_nothing() {
    let Some(mut bench) = Bench::new() else { return };
    let mut sampled = probe(Kind::Both, &[Type::I32], Some(Type::I32));
    let (place, _link) = bench.attach("jumped", &sampled);
    sampled.sample = 3;
    let (third, _second) = bench.attach("jumped", &sampled);
    bench.run(&["jumps", "10"]);
    let told = bench.told();
    let of = |place| -> Vec<_> {
        let hits = told.iter().map(Told::hit).filter(|hit| hit.place == place);
        hits.map(|hit| (hit.arg(0), hit.returned())).collect()
    };
    let returned = |n| (whole(Value::Int(n)), whole(Value::Int(n)));
    assert_eq!(of(place), [0, 2, 4, 6, 8].map(returned));
    // 0, 3, 6 and 9 are sampled; the odd ones never return.
    assert_eq!(of(third), [0, 6].map(returned));
    let counted = bench.counted(place);
    assert_eq!((counted.triggered(), counted.unfinished(), counted.unpaired()), (10, 5, 0), "{counted:?}");
    let counted = bench.counted(third);
    assert_eq!((counted.of(Counter::SampledOut), counted.unfinished()), (6, 2), "{counted:?}");
}

#[test]
fn uprobe_a_fork_returns_in_its_parent_only_and_an_exec_goes_on() {
    let Some(mut bench) = Bench::new() else { return };
    let (forks, _link) = bench.attach("forks", &probe(Kind::Both, &[Type::I32], Some(Type::I32)));
    let (empty, _second) = bench.attach("empty", &probe(Kind::Entry, &[Type::I32], None));
    bench.run(&["fork"]);
    let told = bench.told();
    let [told] = &*told else { panic!("{} hits", told.len()) };
    assert_eq!((told.hit().arg(0), told.hit().returned()), (whole(Value::Int(5)), whole(Value::Int(2))));
    let counted = bench.counted(forks);
    assert_eq!((counted.triggered(), counted.unpaired(), counted.unfinished()), (1, 1, 0), "{counted:?}");

    let pid = bench.run(&["exec"]);
    let told = bench.told();
    let of: Vec<_> = told.iter().map(|told| (told.hit().process.tgid, told.hit().arg(0))).collect();
    assert_eq!(of, [(pid, whole(Value::Int(1))), (pid, whole(Value::Int(0)))]);
    let [first, second] = [0, 1].map(|nth: usize| told[nth].hit().process.self_exec_id);
    assert_eq!(second, first + 1);
    assert_eq!(bench.counted(empty).of(Counter::Delivered), 2);
}

#[test]
fn uprobe_a_library_that_is_opened_later_is_probed() {
    let Some(mut bench) = Bench::new() else { return };
    let library = bench.folder.built(LIBRARY);
    let spec = PlaceSpec::of_function(&probe(Kind::Entry, &[Type::I32], None), Scope::Host).unwrap();
    let (place, _link) = bench.attach_to(&library, "empty", &spec);
    bench.run(&["dlopen", library.to_str().unwrap()]);
    let told = bench.told();
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].hit().place, told[0].hit().arg(0)), (place, whole(Value::Int(77))));
}

#[test]
fn uprobe_counts_of_200_000_calls_are_exact() {
    let calls = 200_000 / u64::from(slowness());
    let Some(mut bench) = Bench::with(&Limits { ring_bytes: 64 << 10, ..Limits::default() }) else { return };
    let mut limited = probe(Kind::Entry, &[Type::I32], None);
    let (all, _link) = bench.attach("empty", &limited);
    limited.sample = 10;
    limited.rate = Some(Rate { per_second: 500, burst: 100 });
    let (some, _second) = bench.attach("empty", &limited);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let program = &bench.program;
            scope.spawn(move || run(Command::new(program).args(["empty", &(calls / 2).to_string()])));
        }
    });
    let took = start.elapsed();
    let told = bench.told();
    let delivered = |place| told.iter().filter(|told| told.hit().place == place).count() as u64;
    let counted = bench.counted(all);
    assert_eq!(counted.triggered() + bench.uprobes.skipped(), calls, "{counted:?}");
    assert_eq!(counted.of(Counter::Delivered), delivered(all));
    assert_eq!(counted.of(Counter::Delivered) + counted.of(Counter::LostRingFull), counted.triggered());
    assert!(counted.of(Counter::LostRingFull) > 0);

    let counted = bench.counted(some);
    assert_eq!(counted.triggered(), calls);
    let of = |counter| counted.of(counter);
    let taken = of(Counter::Delivered) + of(Counter::LostRingFull);
    assert_eq!(of(Counter::SampledOut) + of(Counter::RateLimited) + taken, calls);
    // Two CPUs at once may count as one or take one more.
    let sampled = calls - of(Counter::SampledOut);
    assert!(sampled.abs_diff(calls / 10) < calls / 100, "{counted:?}");
    let may = 100 + u64::try_from(took.as_millis()).unwrap() / 2;
    assert!((100..=may + 10).contains(&taken), "{taken} of {may}: {counted:?}");
    assert_eq!(delivered(some), of(Counter::Delivered));
}

#[test]
fn uprobe_a_marker_is_hit_where_its_semaphore_is_raised() {
    let Some(mut bench) = Bench::new() else { return };
    let mut probe = probe(Kind::Entry, &[Type::I64, Type::I32, Type::U8], None);
    probe.function = Function::Usdt { provider: "test".into(), name: "marked".into() };
    let (edi, rsi) = if cfg!(target_arch = "x86_64") { ("edi", "rsi") } else { ("w0", "x1") };
    let signed = namespan_ebpf::uprobe_wire::Operand { signed: 1, ..register(edi).unwrap().operand() };
    let operands = [signed, register(rsi).unwrap().memory(0), namespan_ebpf::uprobe_wire::Operand::constant(300)];
    let spec = PlaceSpec::of_operands(&probe, Scope::Host, &operands).unwrap();
    let few = PlaceSpec::of_operands(&probe, Scope::Host, &operands[..2]);
    assert!(matches!(few, Err(UprobeError::NoArgument { position: 2, have: 2, .. })), "{few:?}");
    let place = bench.uprobes.place(&spec).unwrap();
    let file = File::open(&bench.program).unwrap();
    let semaphore = Some(offset(&bench.program, "marked_semaphore"));
    let at = At { offset: offset(&bench.program, "marked"), semaphore };
    let said = |bench: &Bench| Command::new(&bench.program).arg("mark").output().unwrap().stdout;
    assert_eq!(said(&bench), b"0\n");
    let link = bench.uprobes.attach(file.as_fd(), place, at).unwrap();
    assert_eq!(said(&bench), b"1\n");
    drop(link);
    assert_eq!(said(&bench), b"0\n");
    let told = bench.told();
    assert_eq!(told.len(), 1);
    let args: Vec<_> = (0..3).map(|index| told[0].hit().arg(index)).collect();
    assert_eq!(args, [Value::Int(-42), Value::Int(-9), Value::Uint(44)].map(whole));
}

#[test]
fn uprobe_places_of_one_binary_are_told_apart_and_end_apart() {
    let limits = Limits { ring_bytes: 1 << 20, places: 2, cgroups: 16, calls: 16 };
    let Some(mut bench) = Bench::with(&limits) else { return };
    let entry = probe(Kind::Entry, &[Type::I32], None);
    let (over, over_link) = bench.attach("jumps_over", &entry);
    let (jumped, link) = bench.attach("jumped", &entry);
    bench.run(&["jumps", "2"]);
    let places: Vec<_> = bench.told().iter().map(|told| told.hit().place).collect();
    assert_eq!(places, [over, jumped, over, jumped]);
    // What is attached still belongs to nobody from now on.
    assert_eq!(bench.uprobes.retire(over).unwrap().of(Counter::Delivered), 2);
    assert!(matches!(bench.uprobes.counted(over), Err(UprobeError::Retired { .. })));
    // Its slot is used again, its id and its counts are not.
    let (again, _again_link) = bench.attach("empty", &entry);
    assert!(again != over && bench.counted(again).triggered() == 0);
    bench.run(&["jumps", "1"]);
    let places: Vec<_> = bench.told().iter().map(|told| told.hit().place).collect();
    assert_eq!((places, bench.counted(again).triggered()), (vec![jumped], 0));
    drop(over_link);
    drop(link);
    bench.run(&["jumps", "1"]);
    assert_eq!((bench.told().len(), bench.counted(jumped).triggered()), (0, 3));
}

#[test]
fn uprobe_only_the_allowed_cgroups_are_told() {
    let Some(mut bench) = Bench::new() else { return };
    let probe = probe(Kind::Both, &[Type::I32], None);
    let program = bench.program.clone();
    let path = program.to_str().unwrap();
    for mount in [cgroup2(), cgroup1().map(|(_, mount)| mount)].into_iter().flatten() {
        let (wanted, other) = (Cgroup::new(&mount, &token()), Cgroup::new(&mount, &token()));
        let (host, link) = bench.attach("empty", &probe);
        run(&mut wanted.command(&[path, "empty", "1"]));
        let told = bench.told();
        let process = told[0].hit().process;
        assert_eq!(told[0].hit().place, host);
        drop(link);
        bench.uprobes.retire(host).unwrap();

        let key = CgroupKey { v2: process.cgroup_id, v1: process.cgroup_v1_id };
        let spec = PlaceSpec::of_function(&probe, Scope::Cgroups).unwrap();
        let (place, _link) = bench.attach_to(&program, "empty", &spec);
        run(&mut wanted.command(&[path, "empty", "1"]));
        assert_eq!(bench.told().len(), 0);
        bench.uprobes.allow(place, key).unwrap();
        let pid = run(&mut wanted.command(&[path, "empty", "2"]));
        run(&mut other.command(&[path, "empty", "3"]));
        let tgids: Vec<_> = bench.told().iter().map(|told| told.hit().process.tgid).collect();
        assert_eq!(tgids, [pid, pid]);
        bench.uprobes.disallow(place, key);
        run(&mut wanted.command(&[path, "empty", "4"]));
        assert_eq!(bench.told().len(), 0);
        let counted = bench.counted(place);
        let of = |counter| counted.of(counter);
        assert_eq!((counted.triggered(), of(Counter::Filtered), of(Counter::Delivered)), (10, 8, 2), "{counted:?}");
        assert_eq!(counted.unpaired(), 0);
    }
}

#[test]
fn uprobe_one_process_is_told_and_others_and_ourselves_are_not() {
    let Some(mut bench) = Bench::new() else { return };
    let entry = probe(Kind::Entry, &[], None);
    let nobody = PlaceSpec::of_function(&entry, Scope::Tgid(1)).unwrap();
    let program = bench.program.clone();
    let (place, _link) = bench.attach_to(&program, "empty", &nobody);
    bench.run(&["empty", "3"]);
    let counted = bench.counted(place);
    assert_eq!((counted.triggered(), counted.of(Counter::Filtered)), (3, 3));

    // Every allocation of ours.
    let libc = fs::read_to_string("/proc/self/maps").unwrap();
    let libc = libc.lines().find_map(|line| line.split_whitespace().nth(5).filter(|path| path.contains("/libc.so.6")));
    let own = PlaceSpec::of_function(&entry, Scope::Tgid(std::process::id())).unwrap();
    let libc = PathBuf::from(libc.unwrap());
    let file = File::open(&libc).unwrap();
    let place = bench.uprobes.place(&own).unwrap();
    let symbols = printed("nm", "-D", &libc);
    let malloc = symbols.lines().find_map(|line| line.split(" T ").nth(1).filter(|name| name.starts_with("malloc@@")));
    let at = At { offset: offset(&libc, malloc.unwrap()), semaphore: None };
    let _link = bench.uprobes.attach(file.as_fd(), place, at).unwrap();
    std::hint::black_box(vec![1_u8; 100]);
    assert_eq!(bench.told().len(), 0);
    let counted = bench.counted(place);
    assert!(counted.triggered() > 0 && counted.triggered() == counted.of(Counter::Filtered), "{counted:?}");
}

#[test]
fn uprobe_what_cannot_be_attached_is_refused_with_the_reason() {
    let Some(mut bench) = Bench::with(&Limits { ring_bytes: 4096, places: 1, cgroups: 1, calls: 1 }) else { return };
    let spec = PlaceSpec::of_function(&probe(Kind::Entry, &[], None), Scope::Host).unwrap();
    let place = bench.uprobes.place(&spec).unwrap();
    assert!(matches!(bench.uprobes.place(&spec), Err(UprobeError::Full { places: 1 })));
    let folder = File::open("/").unwrap();
    let at = At { offset: 4096, semaphore: None };
    let refused = bench.uprobes.attach(folder.as_fd(), place, at).unwrap_err();
    assert!(refused.to_string().contains("regular file"), "{refused}");
    let at = At { offset: 4096, semaphore: Some(1 << 32) };
    let refused = bench.uprobes.attach(folder.as_fd(), place, at).unwrap_err();
    assert!(matches!(refused, UprobeError::Semaphore { .. }), "{refused}");
    bench.uprobes.retire(place).unwrap();
    let refused = bench.uprobes.attach(folder.as_fd(), place, at).unwrap_err();
    assert!(matches!(refused, UprobeError::Retired { .. }), "{refused}");
}

/// Mounted, until it is dropped.
struct Overlay(PathBuf);

impl Overlay {
    fn new(folder: &Path, name: &str, lower: &Path) -> Self {
        let [upper, work, path] = ["upper", "work", "merged"].map(|part| folder.join(format!("{name}-{part}")));
        for path in [&upper, &work, &path] {
            fs::create_dir(path).unwrap();
        }
        let [lower, upper, work] = [lower, &upper, &work].map(|path| path.to_str().unwrap());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&path));
        Self(path)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _left = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn uprobe_files_of_two_overlays_on_one_layer_are_one_inode() {
    let Some(mut bench) = Bench::new() else { return };
    let lower = bench.folder.0.join("lower");
    fs::create_dir(&lower).unwrap();
    let below = lower.join("program");
    fs::copy(&bench.program, &below).unwrap();
    fs::copy(&bench.program, lower.join("copy")).unwrap();
    let [one, two] = ["one", "two"].map(|name| Overlay::new(&bench.folder.0, name, &lower));
    let path = |overlay: &Overlay| overlay.0.join("program");
    if let Err(error @ UprobeError::Inode { .. }) = bench.uprobes.real_inode(File::open(&below).unwrap().as_fd()) {
        eprintln!("skipped: {error}");
        return;
    }
    let mut inode = |path: &Path| bench.uprobes.real_inode(File::open(path).unwrap().as_fd()).unwrap();
    let [first, second, real, other] = [&path(&one), &path(&two), &below, &lower.join("copy")].map(|path| inode(path));
    assert_eq!(first, second);
    assert_eq!(first, real);
    assert_ne!(first, other);
    assert_eq!(first.ino(), rustix::fs::stat(&below).unwrap().st_ino);
    // A container that writes to it has one of its own from then on.
    let held = File::open(path(&one)).unwrap();
    fs::OpenOptions::new().append(true).open(path(&two)).unwrap();
    assert_ne!(inode(&path(&two)), first);
    assert_eq!(inode(&path(&one)), first);
    drop(held);

    let spec = PlaceSpec::of_function(&probe(Kind::Entry, &[Type::I32], None), Scope::Host).unwrap();
    let three = Overlay::new(&bench.folder.0, "three", &lower);
    let (place, _link) = bench.attach_to(&path(&one), "empty", &spec);
    run(Command::new(path(&three)).args(["empty", "2"]));
    run(Command::new(path(&two)).args(["empty", "1"]));
    assert_eq!(bench.told().len(), 2);
    assert_eq!(bench.counted(place).triggered(), 2);
}

#[test]
fn uprobe_calls_that_others_push_out_are_losses_of_their_own() {
    const DEPTH: u64 = 60;
    let limits = Limits { ring_bytes: 1 << 20, places: 2, cgroups: 16, calls: 16 };
    let Some(mut bench) = Bench::with(&limits) else { return };
    let (place, _link) = bench.attach("descend", &probe(Kind::Both, &[Type::I32], Some(Type::I32)));
    bench.run(&["descend", &(DEPTH - 1).to_string()]);
    bench.uprobes.look_at_calls().unwrap();
    let told = bench.told().len() as u64;
    let counted = bench.counted(place);
    assert!(counted.evicted() > 0 && told > 0, "{counted:?}");
    assert_eq!((told + counted.evicted(), counted.unfinished(), counted.lost()), (DEPTH, 0, counted.evicted()));
    // Those that were jumped out of are not lost: they never returned.
    let (jumped, _second) = bench.attach("jumped", &probe(Kind::Both, &[Type::I32], Some(Type::I32)));
    bench.run(&["jumps", "100"]);
    bench.uprobes.look_at_calls().unwrap();
    let counted = bench.counted(jumped);
    assert_eq!((counted.evicted(), counted.unfinished()), (0, 50), "{counted:?}");
}

/// The next thing that the thread says.
fn answer(answers: &mut tokio::sync::mpsc::Receiver<Answer>) -> Answer {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let next = async { tokio::time::timeout(Duration::from_secs(20) * slowness(), answers.recv()).await };
    runtime.block_on(next).unwrap().unwrap()
}

#[test]
fn uprobe_a_container_that_is_only_told_of_is_probed_and_takes_no_more_than_its_share() {
    let limits = Limits { ring_bytes: 1 << 20, places: 16, cgroups: 16, calls: 16 };
    let Some((uprobes, _ring)) = loaded(&limits) else { return };
    let folder = Folder::new();
    let program = folder.built("program");
    let path = program.to_str().unwrap();
    let (mut follower, mut answers) = Follower::start(uprobes, Places::default()).unwrap();
    let probe = |text: &str| namespan::uprobe::parse::probe(text, &[]).unwrap();
    let mut few = probe(&format!("web:{path}:/^(empty|descend)$/"));
    few.name = "few".into();
    let mut many = probe(&format!("web:{path}:/^(empty|descend|jumped|forks|strings)$/"));
    many.name = "many".into();
    let mut hosts = probe(&format!("host:{path}:/^(empty|descend|jumped|forks|strings)$/"));
    hosts.name = "hosts".into();
    follower.settings(&[few, many, hosts]);
    let mut told: Vec<_> = vec![answer(&mut answers)];
    // Nothing of it ever exec'd.
    let mut container = Container::of_id("c".repeat(64), "docker");
    container.name = Some("web".into());
    follower.described(Arc::new(container), Some(std::process::id()));
    told.extend((0..2).map(|_| answer(&mut answers)));
    let told: Vec<_> = told
        .into_iter()
        .map(|answer| match answer {
            Answer::Attached { probe, places, .. } => (probe.name.clone(), Ok(places)),
            Answer::Refused { probe, reason, .. } => (probe.name.clone(), Err(reason)),
        })
        .collect();
    let of = |name: &str| told.iter().find(|(of, _)| of == name).map(|(_, told)| told.clone()).unwrap();
    assert_eq!((of("hosts"), of("few")), (Ok(5), Ok(2)));
    let refused = of("many").unwrap_err();
    assert!(refused.contains("the container has 2 of the 4 that one may have"), "{refused}");
}

/// Probes for a container that is named so, of a file that the target has at that path.
fn named(name: &str, text: &str) -> Uprobe {
    let mut probe = namespan::uprobe::parse::probe(text, &[]).unwrap();
    probe.name = name.into();
    probe
}

fn container(id: &str, name: &str) -> Arc<Container> {
    let mut container = Container::of_id(id.repeat(64), "docker");
    container.name = Some(name.into());
    Arc::new(container)
}

#[test]
fn uprobe_what_there_was_no_room_for_is_probed_when_there_is() {
    if !ready() {
        return;
    }
    let limits = Limits { ring_bytes: 1 << 20, places: 8, cgroups: 16, calls: 16 };
    let (uprobes, _ring) = Uprobes::load(&limits).unwrap();
    let folder = Folder::new();
    let program = folder.built(PROGRAM);
    let path = program.to_str().unwrap();
    let (mut follower, mut answers) = Follower::start(uprobes, Places::default()).unwrap();
    let hosts = named("hosts", &format!("host:{path}:/^(all_ints|descend|empty|forks|jumped|others|strings)$/"));
    let ours = named("ours", &format!("web:{path}:/^(empty|descend)$/"));
    follower.settings(&[hosts, ours.clone()]);
    let Answer::Attached { places: taken, .. } = answer(&mut answers) else { panic!("the host's probe is refused") };
    assert!(taken > 6, "{taken} places are not all but one");
    follower.described(container("c", "web"), Some(std::process::id()));
    let Answer::Refused { reason, .. } = answer(&mut answers) else { panic!("there is room") };
    assert!(reason.contains("all 8 places are in use"), "{reason}");
    follower.settings(&[ours]);
    let Answer::Attached { probe, places, .. } = answer(&mut answers) else { panic!("there is room now") };
    assert_eq!((&*probe.name, places), ("ours", 2));
}

#[test]
fn uprobe_a_container_that_makes_cgroups_takes_no_more_than_its_share() {
    if !ready() {
        return;
    }
    let limits = Limits { ring_bytes: 1 << 20, places: 16, cgroups: 16, calls: 16 };
    let (uprobes, _ring) = Uprobes::load(&limits).unwrap();
    let folder = Folder::new();
    let program = folder.built(PROGRAM);
    let path = program.to_str().unwrap();
    let (mut follower, mut answers) = Follower::start(uprobes, Places::default()).unwrap();
    let all = named("all", &format!("*:{path}:empty"));
    let few = named("few", &format!("second:{path}:descend"));
    follower.settings(&[all, few]);
    let first = container("a", "first");
    follower.described(Arc::clone(&first), Some(std::process::id()));
    assert!(matches!(answer(&mut answers), Answer::Attached { .. }));
    for v2 in 1..100 {
        // Each a process that there is not.
        let process = Who::Known(ProcessId { tgid: 1 << 23, start_boot_ns: 1 });
        let cgroup = CgroupKey { v2: v2 << 32, v1: 0 };
        follower.seen(Sighting { container: Some(Arc::clone(&first)), cgroup, process });
    }
    follower.described(container("b", "second"), Some(std::process::id()));
    match answer(&mut answers) {
        Answer::Attached { probe, places, .. } => assert_eq!((&*probe.name, places), ("few", 1)),
        Answer::Refused { probe, reason, .. } => panic!("{}: {reason}", probe.name),
    }
}

#[test]
fn uprobe_words_that_find_no_room_are_made_up_for_once() {
    let Some((uprobes, _ring)) = loaded(&Limits::default()) else { return };
    let (mut follower, _answers) = Follower::start(uprobes, Places::default()).unwrap();
    assert!(!follower.has_missed());
    let (start_boot_ns, cgroup) = (1, CgroupKey { v2: 1, v1: 0 });
    for tgid in 1..200_000 {
        // Each a process that there is not.
        let process = Who::Known(ProcessId { tgid: tgid + (1 << 23), start_boot_ns });
        follower.seen(Sighting { container: None, cgroup, process });
    }
    let start = Instant::now();
    while !follower.has_missed() {
        assert!(start.elapsed() < Duration::from_secs(20) * slowness());
        std::thread::yield_now();
    }
    assert!(!follower.has_missed());
}

#[test]
fn uprobe_a_hundred_places_end_side_by_side() {
    let limits = Limits { ring_bytes: 1 << 20, places: 128, cgroups: 16, calls: 16 };
    let Some(mut bench) = Bench::with(&limits) else { return };
    let entry = probe(Kind::Entry, &[Type::I32], None);
    let links: Vec<_> = (0..100).map(|_| bench.attach("empty", &entry).1).collect();
    bench.run(&["empty", "1"]);
    assert_eq!(bench.told().len(), 100);
    let start = Instant::now();
    let (detacher, ended) = Detacher::new();
    detacher.end(links);
    assert!(
        start.elapsed() < Duration::from_millis(500) * slowness(),
        "whoever ends them waits: {:?}",
        start.elapsed()
    );
    drop(detacher);
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(ended.wait());
    let took = start.elapsed();
    eprintln!("100 places detached in {took:?}");
    let has_links = fs::read_to_string("/proc/kallsyms").unwrap().contains(" bpf_uprobe_multi_link_attach");
    assert_eq!(bench.uprobes.ends_at_once(), has_links, "links of uprobe.multi where the kernel has them");
    // Otherwise the kernel takes one after the other.
    assert!(!bench.uprobes.ends_at_once() || took < Duration::from_secs(2) * slowness(), "{took:?}");
    bench.run(&["empty", "1"]);
    assert_eq!(bench.told().len(), 0);
}

#[test]
fn uprobe_a_file_system_that_never_answers_is_not_asked() {
    let Some(bench) = Bench::new() else { return };
    let [dead, local] = ["dead", "local"].map(|name| bench.folder.0.join(name));
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    for path in [&dead, &local] {
        fs::create_dir(path).unwrap();
    }
    std::os::unix::fs::symlink(dead.join("program"), bench.folder.0.join("link")).unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let options = CString::new(options).unwrap();
    rustix::mount::mount("dead", &dead, "fuse", rustix::mount::MountFlags::empty(), options.as_c_str()).unwrap();
    let _dead = Overlay(dead.clone());
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&local));
    let _local = Overlay(local.clone());
    fs::copy(&bench.program, local.join("program")).unwrap();
    let (folder, local) = (bench.folder.0.clone(), local.join("program"));
    let (answer, answers) = std::sync::mpsc::sync_channel(4);
    // Who waits for it waits for ever.
    std::thread::spawn(move || {
        let root = Root::of_pid(std::process::id()).unwrap();
        for path in [dead.join("program"), folder.join("link"), local, folder.join("program")] {
            let opened = root.open(path.to_str().unwrap()).map(|opened| opened.path);
            answer.send(opened.map_err(|error| error.to_string())).unwrap();
        }
    });
    let next = || answers.recv_timeout(Duration::from_secs(5) * slowness()).expect("an answer");
    let refused = next().unwrap_err();
    assert!(refused.contains("type fuse, mounted on") && refused.contains("never answer"), "{refused}");
    let refused = next().unwrap_err();
    assert!(refused.contains("real path"), "{refused}");
    for _ in 0..2 {
        assert!(next().unwrap().ends_with("program"));
    }
}

/// What a hit costs the program that is probed, and what detaching takes.
#[test]
#[ignore = "a figure for people: run it alone, with --ignored --nocapture"]
fn uprobe_cost_of_a_hit_is_measured() {
    const CALLS: u32 = 100_000;
    let Some(mut bench) = Bench::with(&Limits { ring_bytes: 128 << 20, ..Limits::default() }) else { return };
    let program = bench.program.clone();
    let per_call = || {
        let start = Instant::now();
        run(Command::new(&program).args(["empty", &CALLS.to_string()]));
        start.elapsed().as_nanos() / u128::from(CALLS)
    };
    let unprobed = per_call();
    eprintln!("ns per call, the start of its process included: {unprobed} unprobed");
    let returned = |kind| matches!(kind, Kind::Both).then_some(Type::I32);
    for (name, kind, arg) in [
        ("a number", Kind::Entry, Some(Type::I32)),
        ("nothing of a return", Kind::Return, None),
        ("a number and what is returned", Kind::Both, Some(Type::I32)),
    ] {
        let args: Vec<_> = arg.into_iter().collect();
        let costs = [Scope::Cgroups, Scope::Host].map(|scope| {
            let spec = PlaceSpec::of_function(&probe(kind, &args, returned(kind)), scope).unwrap();
            let (place, link) = bench.attach_to(&program, "empty", &spec);
            let cost = per_call();
            let counted = bench.counted(place);
            assert_eq!(counted.of(Counter::Filtered) + counted.of(Counter::Delivered), u64::from(CALLS), "{counted:?}");
            bench.told();
            let start = Instant::now();
            drop(link);
            (cost, start.elapsed().as_millis())
        });
        let [(unmatched, _), (told, detached)] = costs;
        eprintln!("{name}: {unmatched} in a cgroup that is not wanted, {told} told; detached in {detached} ms");
    }
}
