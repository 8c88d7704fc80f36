//! The attached programs and all that they have told so far.

use std::fs;
use std::time::{Duration, Instant};

use namespan::attach::{Attached, Counted, Unwanted, attach};
use namespan::config::Probes;
use namespan::decode;
use namespan::event::{Event, Exec, Exit, Kind, ProcessId};
use namespan::ring::Ring;
use namespan_ebpf::wire::{Counter, Program};
use tokio::runtime::Runtime;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);
/// As the pipeline's.
const TICK: Duration = Duration::from_millis(20);
/// `PROC_PID_INIT_INO` in `include/linux/proc_ns.h`.
const HOST_PID_NS: &str = "pid:[4026531836]";

/// By how much slower than a real one this machine is, where processors are emulated: patience is multiplied by it, and what
/// is done many times is divided.
pub fn slowness() -> u32 {
    std::env::var("NAMESPAN_TEST_SLOWNESS").map_or(1, |times| times.parse().unwrap())
}

/// Whether these tests can run; without root they pass, unless `NAMESPAN_REQUIRE_ALL` is set.
pub fn ready() -> bool {
    let missing = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if fs::read_link("/proc/self/ns/pid").unwrap().as_os_str() != HOST_PID_NS {
        "not in the host's PID namespace"
    } else if !fs::exists("/bin/busybox").unwrap() {
        "/bin/busybox is missing"
    } else {
        return true;
    };
    assert!(std::env::var_os("NAMESPAN_REQUIRE_ALL").is_none(), "{missing}");
    eprintln!("skipped: {missing}");
    false
}

/// One record, as it came.
#[derive(Clone)]
pub struct Told(Vec<u8>);

impl Told {
    pub fn event(&self) -> Event<'_> {
        decode::event(&self.0).unwrap()
    }

    pub fn exec(&self) -> Exec<'_> {
        exec(&self.event()).unwrap().clone()
    }

    pub fn exit(&self) -> Exit {
        exit(&self.event()).unwrap()
    }

    pub fn id(&self) -> ProcessId {
        self.event().id()
    }
}

pub fn exec<'e, 'a>(event: &'e Event<'a>) -> Option<&'e Exec<'a>> {
    match &event.kind {
        Kind::Exec(exec) => Some(exec),
        Kind::Exit(_) | Kind::ExecFailed(_) => None,
    }
}

pub fn exit(event: &Event<'_>) -> Option<Exit> {
    match &event.kind {
        Kind::Exit(exit) => Some(*exit),
        Kind::Exec(_) | Kind::ExecFailed(_) => None,
    }
}

/// An exec of the process, however it came about.
pub fn execs(pid: u32) -> impl Fn(&Event<'_>) -> bool {
    move |event| event.process.tgid == pid && exec(event).is_some()
}

pub fn exits(pid: u32) -> impl Fn(&Event<'_>) -> bool {
    move |event| event.process.tgid == pid && exit(event).is_some()
}

/// An exec one of whose arguments is `token`: no other process ever, as pids are used again.
fn execs_with(token: &str) -> impl Fn(&Event<'_>) -> bool {
    move |event| exec(event).is_some_and(|exec| exec.args.iter().any(|arg| arg == token.as_bytes()))
}

/// An exec whose first argument is `command`, and one of whose arguments is `token`.
pub fn execs_as(command: &str, token: &str) -> impl Fn(&Event<'_>) -> bool {
    move |event| {
        let Some(exec) = exec(event) else { return false };
        exec.args.iter().next() == Some(command.as_bytes()) && execs_with(token)(event)
    }
}

pub struct Watch {
    attached: Attached,
    ring: Ring,
    /// There is one where containers are filtered.
    pub unwanted: Option<Unwanted>,
    runtime: Runtime,
    told: Vec<Told>,
}

/// What there was to tell, once the programs are detached.
pub struct Ended {
    pub told: Vec<Told>,
    pub counted: Counted,
}

impl Watch {
    /// `None`: these tests can't run here.
    pub fn start(probes: &Probes) -> Option<Self> {
        if !ready() {
            return None;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (attached, ring, unwanted) = attach(probes).unwrap();
        assert_eq!(attached.missing, Vec::<&str>::new(), "this kernel has all that is looked for");
        let ring = {
            let _within = runtime.enter();
            Ring::new(ring).unwrap()
        };
        Some(Self { attached, ring, unwanted, runtime, told: Vec::new() })
    }

    /// Everything by its default.
    pub fn default() -> Option<Self> {
        Self::start(&Probes::default())
    }

    /// Waits for the next records, a tick at most, and takes them.
    pub fn pump(&mut self) {
        let Self { ring, runtime, told, .. } = self;
        if let Ok(woken) = runtime.block_on(async { timeout(TICK, ring.wait()).await }) {
            woken.unwrap();
        }
        while ring.read(4096, |record| told.push(Told(record.to_vec()))) == 4096 {}
    }

    /// The first record that is meant, as soon as it is there.
    #[track_caller]
    pub fn find(&mut self, meant: impl Fn(&Event<'_>) -> bool) -> Told {
        let deadline = Instant::now() + PATIENCE * slowness();
        let mut seen = 0;
        loop {
            if let Some(told) = self.told[seen..].iter().find(|told| meant(&told.event())) {
                return told.clone();
            }
            seen = self.told.len();
            assert!(Instant::now() < deadline, "not told in time, among {seen} records");
            self.pump();
        }
    }

    pub fn counted(&self) -> Counted {
        self.attached.counted().unwrap()
    }

    /// Ends as the pipeline does; for each program, whatever happened was filtered, delivered or lost.
    pub fn end(mut self) -> Ended {
        self.attached.detach().unwrap();
        self.pump();
        // A program that was running while it was detached still has to count.
        let deadline = Instant::now() + PATIENCE * slowness();
        let counted = loop {
            let counted = self.counted();
            let adds_up = |program: &Program| {
                let of = |counter| counted.of(*program, counter);
                let lost = counted.lost(*program);
                of(Counter::Triggered) == of(Counter::Filtered) + of(Counter::Delivered) + lost
            };
            if Program::ALL.iter().all(adds_up) {
                break counted;
            }
            assert!(Instant::now() < deadline, "{counted:?}");
            self.pump();
        };
        let ended = Ended { told: self.told, counted };
        for program in Program::ALL {
            assert_eq!(ended.of(program), counted.of(program, Counter::Delivered), "{program:?}");
        }
        // Nothing that a kernel thread did is told: they are children of the second process, and never exec.
        assert_eq!(ended.count(|event| event.process.parent_tgid == 2 && event.execs() == 0), 0);
        ended
    }

    /// As [`Watch::end`], where nothing at all may be lost.
    pub fn end_whole(self) -> Ended {
        let ended = self.end();
        for program in Program::ALL {
            assert_eq!(ended.counted.lost(program), 0, "{:?}", ended.counted);
        }
        ended
    }
}

impl Ended {
    fn of(&self, program: Program) -> u64 {
        let is_of = |event: &Event<'_>| match event.kind {
            Kind::Exec(_) => program == Program::Exec,
            Kind::Exit(_) => program == Program::Exit,
            Kind::ExecFailed(_) => program == Program::ExecFailed,
        };
        self.count(is_of) as u64
    }

    pub fn count(&self, meant: impl Fn(&Event<'_>) -> bool) -> usize {
        self.all(meant).count()
    }

    pub fn all(&self, meant: impl Fn(&Event<'_>) -> bool) -> impl Iterator<Item = &Told> {
        self.told.iter().filter(move |told| meant(&told.event()))
    }
}
