//! One container of a list: what its files show comes in, updates go out.

use std::sync::Arc;

use super::layout::{Entry, Found};
use super::process::Process;
use crate::enrich::How;
use crate::enrich::container::{Container, Labels};
use crate::enrich::runtime::{Place, Update};

/// How often a container is looked at again that should have a process.
const LOOKS: u32 = 3;

/// A container in a list, and what has been told of it.
pub struct Known {
    pub entry: Entry,
    pub watches: Vec<i32>,
    /// To be told of, whether it has a process or not.
    pub news: bool,
    /// As the last time.
    start: Option<u64>,
    told: Option<Told>,
    /// How often it was looked at again for want of a process.
    looks: u32,
}

struct Told {
    container: Arc<Container>,
    place: Place,
    process: Option<Process>,
    over: bool,
}

impl Known {
    pub fn new(entry: Entry, news: bool) -> Self {
        Self { entry, watches: Vec::new(), news, start: None, told: None, looks: 0 }
    }

    /// Whether its files have ever been read.
    pub fn is_described(&self) -> bool {
        self.start.is_some()
    }

    pub fn is_told(&self) -> bool {
        self.told.is_some()
    }

    pub fn runs(&self) -> bool {
        self.told.as_ref().is_some_and(|told| !told.over)
    }

    /// Tells of its end if its process has ended.
    pub fn check(&mut self, updates: &mut Vec<Update>) {
        if self.told.as_ref().is_some_and(|told| !told.over && told.process.is_some() && !told.lives()) {
            self.end(updates);
        }
    }

    /// Whether to look again for its process, of which the runtime itself may have been in the way the last time.
    pub fn lacks_process(&mut self) -> bool {
        let lacks = self.looks < LOOKS && self.told.as_ref().is_some_and(|told| !told.over && told.process.is_none());
        self.looks += u32::from(lacks);
        lacks
    }

    /// Tells of its end, once.
    pub fn end(&mut self, updates: &mut Vec<Update>) {
        if let Some(told) = self.told.as_mut().filter(|told| !told.over) {
            end(told, updates);
        }
    }

    /// Takes in what its files show, and tells of it if there is something to tell, or if somebody has `asked`.
    pub fn found(
        &mut self,
        runtime: &'static str,
        found: Found,
        labels: &Labels,
        asked: bool,
        updates: &mut Vec<Update>,
    ) {
        let Found { described, cgroup, process, start } = found;
        self.news |= self.start.is_some_and(|before| before != start);
        self.start = Some(start);
        if process.is_none() {
            self.check(updates);
        }
        let told = self.told.as_ref();
        let process = process.or_else(|| told.filter(|told| told.lives())?.process);
        let place = Place { cgroup, pid: process.map(|process| process.pid) };
        let container = Container::described(runtime, described, labels);
        let was_over = told.is_some_and(|told| told.over);
        let changed = told.is_some_and(|told| *told.container != container || told.place != place);
        let started = process.is_some() && told.is_none_or(|told| told.process != process);
        let starts = std::mem::take(&mut self.news) || started;
        if starts {
            self.looks = 0;
        }
        if !starts && !asked && (!changed || was_over) {
            return;
        }
        let container = match told {
            Some(told) if *told.container == container => Arc::clone(&told.container),
            Some(_) | None => Arc::new(container),
        };
        updates.push(Update::Known { container: Arc::clone(&container), how: How::RuntimeFiles, place: place.clone() });
        let told = self.told.insert(Told { container, place, process, over: false });
        if was_over && !starts {
            end(told, updates);
        }
    }
}

impl Told {
    fn lives(&self) -> bool {
        self.process.is_some_and(Process::lives)
    }
}

fn end(told: &mut Told, updates: &mut Vec<Update>) {
    told.over = true;
    updates.push(Update::Gone { key: told.container.key().into_owned() });
}
