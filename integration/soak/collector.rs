//! A collector that comes and goes, and remembers of all that it was sent no more than the identities.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use http::StatusCode;
use namespan_integration::PATIENCE;
use namespan_integration::attribute::Value;
use namespan_integration::rotel::free_addresses;
use namespan_integration::sink::{Record, Sink};
use namespan_integration::span::Span;
use namespan_integration::watched::poll;

/// How often what came is taken over.
const OFTEN: Duration = Duration::from_secs(1);

pub struct Collector {
    address: SocketAddr,
    state: Mutex<State>,
}

struct State {
    sink: Option<Sink>,
    seen: Seen,
}

/// Each once, however often it came.
#[derive(Default)]
struct Seen {
    execs: HashSet<String>,
    exits: HashSet<String>,
    execs_in_containers: HashSet<String>,
    spans: HashSet<u64>,
    others: u64,
}

/// How many.
#[derive(Debug)]
pub struct Got {
    pub execs: u64,
    pub exits: u64,
    pub execs_in_containers: u64,
    pub spans: u64,
    pub others: u64,
}

impl Collector {
    pub fn start() -> Self {
        let [address] = free_addresses();
        Self { address, state: Mutex::new(State { sink: Some(Sink::start_at(address)), seen: Seen::default() }) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Away or there for random times; how often it was away. It is there at the end.
    pub fn come_and_go(&self, end: Instant) -> u64 {
        let mut outages = 0;
        while Instant::now() < end {
            self.last(end);
            outages += 1;
            // Not to be reached, or with nothing but refusals.
            if outages % 2 == 0 {
                self.with(|state| state.sink.iter().for_each(|sink| sink.refuse(StatusCode::SERVICE_UNAVAILABLE)));
                self.last(end);
            } else {
                self.with(State::leave);
                self.last(end);
            }
            self.with(|state| {
                state.leave();
                state.sink = Some(Sink::start_at(self.address));
            });
        }
        outages
    }

    /// Waits for so many execs and exits.
    pub fn wait_for(&self, events: usize) {
        let has = || {
            let Got { execs, exits, .. } = self.got();
            (execs + exits >= events as u64).then_some(())
        };
        // What has waited on the disk takes its time.
        let came = poll(4 * PATIENCE, has);
        assert!(came.is_some(), "{events} events were to come: {:?}", self.got());
    }

    pub fn got(&self) -> Got {
        self.with(|state| {
            state.take_over();
            let Seen { execs, exits, execs_in_containers, spans, others } = &state.seen;
            Got {
                execs: execs.len() as u64,
                exits: exits.len() as u64,
                execs_in_containers: execs_in_containers.len() as u64,
                spans: spans.len() as u64,
                others: *others,
            }
        })
    }

    /// Lets some time go by.
    fn last(&self, end: Instant) {
        let until = end.min(Instant::now() + fastrand::u32(1..=100) * super::OUTAGE / 100);
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.with(State::take_over);
            thread::park_timeout(left.min(OFTEN));
        }
    }

    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.state.lock().unwrap())
    }
}

impl State {
    fn take_over(&mut self) {
        if let Some(sink) = &self.sink {
            let (records, spans) = sink.take();
            self.seen.remember(records, &spans);
        }
    }

    fn leave(&mut self) {
        if let Some(sink) = self.sink.take() {
            let (records, spans) = sink.end();
            self.seen.remember(records, &spans);
        }
    }
}

impl Seen {
    fn remember(&mut self, records: Vec<Record>, spans: &[Span]) {
        for record in records {
            if !record.is_exec() && !record.is_exit() {
                println!("{record:?}");
                self.others += 1;
                continue;
            }
            let uid = record.get("log.record.uid").text().to_owned();
            if record.is_exit() {
                self.exits.insert(uid);
                continue;
            }
            if *record.of_resource("container.id") != Value::Empty {
                self.execs_in_containers.insert(uid.clone());
            }
            self.execs.insert(uid);
        }
        self.spans.extend(spans.iter().map(|span| u64::from_str_radix(&span.span_id, 16).unwrap()));
    }
}
