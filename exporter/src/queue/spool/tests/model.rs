//! A queue against a model of it: what is pushed, sent, killed, started again and damaged at random.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

#[derive(Clone, Debug)]
enum Act {
    Push(Class, u32, usize),
    Step,
    Pop,
    /// One of those in flight: how many of its records are delivered, and then lost.
    Settle(Index, u32, u32),
    Pass(u64),
    Kill,
    Stop,
    Damage(Damage),
}

/// What happens to one file between two runs.
#[derive(Clone, Debug)]
enum Damage {
    Cut(Index, Index),
    Flip(Index, Index, u8),
    /// A batch that was being written.
    Torn(Index, Index),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let class = prop::sample::select(vec![Class::Note, Class::Exec, Class::Exit]);
    let damage = prop_oneof![
        (any::<Index>(), any::<Index>()).prop_map(|(file, len)| Damage::Cut(file, len)),
        (any::<Index>(), any::<Index>(), 0..8_u8).prop_map(|(file, at, bit)| Damage::Flip(file, at, bit)),
        (any::<Index>(), any::<Index>()).prop_map(|(file, len)| Damage::Torn(file, len)),
    ];
    let act = prop_oneof![
        8 => (class, 1..9_u32, 0..12_000_usize).prop_map(|(class, records, len)| Act::Push(class, records, len)),
        8 => Just(Act::Step),
        6 => Just(Act::Pop),
        6 => (any::<Index>(), 0..9_u32, 0..9_u32).prop_map(|(at, delivered, lost)| Act::Settle(at, delivered, lost)),
        1 => (0..1200_u64).prop_map(Act::Pass),
        1 => Just(Act::Kill),
        1 => Just(Act::Stop),
        1 => damage.prop_map(Act::Damage),
    ];
    prop::collection::vec(act, 1..250)
}

struct Model {
    rig: Rig,
    run: Run,
    flights: Vec<InFlight>,
    pushed: u64,
    /// Settled, and marked so on disk.
    settled: BTreeSet<u64>,
    /// Settled, and perhaps not yet marked.
    fresh: BTreeSet<u64>,
    /// The last that this run has taken.
    last: Option<u64>,
    /// Something has, and so may be out of its order.
    came_back: bool,
    damaged: bool,
}

impl Model {
    fn new() -> Self {
        let mut rig = Rig::new();
        rig.settings.max_bytes = 200_000;
        rig.limits = config::Queue { max_bytes: 40_000, max_records: Some(60), ..LIMITS };
        let run = rig.open();
        Self {
            rig,
            run,
            flights: Vec::new(),
            pushed: 0,
            settled: BTreeSet::new(),
            fresh: BTreeSet::new(),
            last: None,
            came_back: false,
            damaged: false,
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Push(class, records, len) => {
                // Tells batches apart.
                let mut body = self.pushed.to_le_bytes().to_vec();
                body.resize(8 + len, 0);
                self.pushed += 1;
                let form = [Protocol::Grpc, Protocol::HttpProtobuf][len % 2];
                self.run.queue.push(Batch::seal(class, records, &body, form, Compression::None).unwrap());
            }
            Act::Step => self.step(),
            Act::Pop => {
                let Some(taken) = self.run.pop() else { return };
                let id = id(&taken);
                // A flipped bit may have unsettled one.
                assert!(!self.settled.contains(&id) || self.damaged, "{id} was settled");
                assert!(self.came_back || self.last.is_none_or(|last| last < id), "{id} after {:?}", self.last);
                self.last = Some(id);
                self.flights.push(taken);
            }
            Act::Settle(at, delivered, lost) => {
                if self.flights.is_empty() {
                    return;
                }
                let mut taken = self.flights.swap_remove(at.index(self.flights.len()));
                let id = id(&taken);
                taken.deliver(delivered, delivered / 3);
                taken.lose(Reason::TooLarge, lost);
                if delivered + lost == 0 {
                    self.came_back = true;
                } else {
                    // Whatever is left of it while the queue is open is lost.
                    self.fresh.insert(id);
                }
            }
            Act::Pass(seconds) => self.rig.pass(Duration::from_secs(seconds)),
            Act::Kill => self.restart(true, None),
            Act::Stop => self.restart(false, None),
            Act::Damage(damage) => self.restart(true, Some(damage)),
        }
        self.run.check();
        let held = self.run.queue.shared.lock().held();
        // One batch is always let in.
        assert!(held.bytes <= 40_000 && held.records <= 60, "{held:?}");
    }

    fn step(&mut self) {
        self.rig.step(&mut self.run);
        self.settled.append(&mut self.fresh);
        let bytes = self.rig.bytes();
        assert_eq!(self.run.queue.depth().spool_bytes, bytes);
        assert!(bytes <= self.rig.settings.max_bytes);
    }

    /// The next run has exactly what is on disk, and not settled.
    fn restart(&mut self, is_killed: bool, damage: Option<Damage>) {
        let flights = std::mem::take(&mut self.flights);
        if is_killed {
            std::mem::forget(flights);
        } else {
            // What came back that is on disk no longer is written again, behind others.
            self.came_back |= self.has_gone();
            self.run.queue.close();
            drop(flights);
            self.run.queue.end();
            self.run.spooler.finish(self.rig.moment);
            self.settled.append(&mut self.fresh);
            assert_eq!(self.run.check().spool.unwrap().records, self.on_disk());
        }
        let on_disk = self.on_disk();
        // Ends the run, and so its lock, without any last act.
        self.run = Rig::new().open();
        let slack = damage.map_or(0, |damage| self.damage(&damage));
        self.run = self.rig.open();
        self.last = None;
        let recovered = self.run.check().spool.unwrap().recovered;
        match slack {
            // Only an unreadable head of a segment leaves open what was in it.
            u64::MAX => assert!(recovered <= on_disk + 8),
            slack => assert!((on_disk..=on_disk + slack).contains(&recovered), "{recovered}, not {on_disk} + {slack}"),
        }
        // What was settled and not marked may be sent twice.
        self.fresh.clear();
    }

    fn has_gone(&self) -> bool {
        let waiting = self.run.queue.shared.lock();
        waiting.stored.as_ref().is_some_and(|stored| stored.flights.values().any(|flight| flight.is_gone))
    }

    /// Records that are in a segment, and not marked as settled.
    fn on_disk(&self) -> u64 {
        self.run.queue.shared.lock().stored.as_ref().map_or(0, |stored| {
            let ready = stored.ready.values().map(|(kept, _)| kept);
            let flights = stored.flights.values().filter(|flight| !flight.is_gone).map(|flight| &flight.kept);
            stored.unread.records + ready.chain(flights).map(|kept| u64::from(kept.records)).sum::<u64>()
        })
    }

    /// How many records more than there are may be found.
    fn damage(&mut self, damage: &Damage) -> u64 {
        let files = self.rig.files();
        if files.is_empty() {
            return 0;
        }
        self.damaged = true;
        match damage {
            Damage::Cut(file, len) => {
                let path = &files[file.index(files.len())];
                let mut bytes = fs::read(path).unwrap();
                bytes.truncate(len.index(bytes.len() + 1));
                fs::write(path, &bytes).unwrap();
                if bytes.len() < 64 { u64::MAX } else { 0 }
            }
            Damage::Flip(file, at, bit) => {
                let path = &files[file.index(files.len())];
                let mut bytes = fs::read(path).unwrap();
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
                fs::write(path, &bytes).unwrap();
                // The mark of one batch.
                8
            }
            Damage::Torn(file, len) => {
                let path = &files[file.index(files.len())];
                let mut bytes = fs::read(path).unwrap();
                let record = bytes[64.min(bytes.len())..].to_vec();
                bytes.extend(&record[..len.index(record.len().min(64) + 1).min(63)]);
                fs::write(path, &bytes).unwrap();
                0
            }
        }
    }
}

/// The number in front of the body.
fn id(taken: &InFlight) -> u64 {
    u64::from_le_bytes(taken.batch().message()[..8].try_into().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_unseen_and_nothing_comes_twice(acts in acts()) {
        let mut model = Model::new();
        for act in acts {
            model.act(act);
        }
        // The end: all that is left is sent once.
        model.restart(true, None);
        let mut seen = BTreeSet::new();
        model.step();
        while let Some(mut taken) = model.run.pop() {
            let id = id(&taken);
            prop_assert!(seen.insert(id) && (model.damaged || !model.settled.contains(&id)));
            taken.deliver(u32::MAX, 0);
            drop(taken);
            model.step();
        }
        let counts = model.run.check();
        prop_assert_eq!((counts.in_flight, model.run.queue.depth().records), (0, 0));
        prop_assert_eq!(counts.spool.unwrap().recovered, counts.exported + counts.dropped_total());
    }
}
