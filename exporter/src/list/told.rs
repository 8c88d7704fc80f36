//! What runtimes tell within a short time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{Instant, timeout_at};

use super::host::Process;
use crate::config::{Reach, RuntimeName, Runtimes};
use crate::enrich::How;
use crate::enrich::container::Container;
use crate::enrich::runtime::{Line, Link, Place, Runtime, Update, follow};

/// Updates that may wait; a runtime waits for room.
const UPDATES: usize = 1024;
/// Questions to one runtime that may wait.
const LOOKUPS: usize = 1024;

pub struct Told {
    /// By [key](Container::key).
    pub known: BTreeMap<String, Known>,
    runtimes: Vec<Asked>,
    updates: Receiver<(usize, Update)>,
    /// Ids that were asked for, each with those runtimes that have not answered yet.
    open: BTreeSet<(usize, String)>,
}

pub struct Known {
    pub container: Arc<Container>,
    pub how: How,
    pub place: Place,
}

struct Asked {
    name: &'static str,
    place: String,
    answers_for: &'static [&'static str],
    lookups: Sender<String>,
    link: Option<Link>,
}

impl Told {
    /// Within a tokio runtime only. Dropping it ends the sessions.
    pub fn start(runtimes: Vec<Box<dyn Runtime>>) -> Self {
        let (told, updates) = mpsc::channel(UPDATES);
        let start = |(source, runtime): (usize, Box<dyn Runtime>)| {
            let (lookups, questions) = mpsc::channel(LOOKUPS);
            let (name, place, answers_for) = (runtime.name(), runtime.place(), runtime.answers_for());
            tokio::spawn(follow(runtime, Line::new(source, questions, told.clone())));
            Asked { name, place, answers_for, lookups, link: None }
        };
        let runtimes = runtimes.into_iter().enumerate().map(start).collect();
        Self { known: BTreeMap::new(), runtimes, updates, open: BTreeSet::new() }
    }

    /// Until each runtime has told of what runs, or that it is not there.
    pub async fn connected(&mut self, deadline: Instant) {
        self.hear(deadline, |told| told.runtimes.iter().all(|runtime| runtime.link.is_some())).await;
    }

    /// Asks for these ids, of containers of these runtimes, and waits for the answers.
    pub async fn look_up(&mut self, ids: &BTreeMap<String, &'static str>, deadline: Instant) {
        for (source, asked) in self.runtimes.iter().enumerate() {
            if asked.link != Some(Link::Connected) {
                continue;
            }
            for (id, _) in ids.iter().filter(|(_, runtime)| asked.answers_for.contains(*runtime)) {
                if asked.lookups.try_send(id.clone()).is_ok() {
                    self.open.insert((source, id.clone()));
                }
            }
        }
        self.hear(deadline, |told| told.open.is_empty()).await;
    }

    /// Whether a runtime itself has told of the container of this key.
    pub fn is_told_by_runtime(&self, key: &str) -> bool {
        self.known.get(key).is_some_and(|known| known.how.is_by_runtime())
    }

    /// Key of the container that a process is in by what its runtime says of cgroups or of its first process.
    pub fn owner(&self, process: &Process) -> Option<String> {
        let owns = |known: &Known| {
            let Place { cgroup, pid } = &known.place;
            *pid == Some(process.pid) || cgroup.as_ref().is_some_and(|cgroup| process.is_below(cgroup))
        };
        self.known.iter().find(|(_, known)| owns(known)).map(|(key, _)| key.clone())
    }

    /// Those that have not told, though they should have, in whole sentences.
    pub fn silent(&self, runtimes: &Runtimes) -> Vec<String> {
        let is_found_by_itself = |name: &str| {
            RuntimeName::ALL.iter().any(|known| known.name() == name && *runtimes.reach(*known) == Reach::Auto)
        };
        let sentence = |asked: &Asked| {
            let why = match &asked.link {
                Some(Link::Connected) => return None,
                Some(Link::Absent { .. }) if is_found_by_itself(asked.name) => return None,
                Some(Link::Absent { reason } | Link::Lost { reason }) => reason.as_str(),
                None => "no answer in time",
            };
            Some(format!("{} does not tell of its containers at {}: {why}", asked.name, asked.place))
        };
        self.runtimes.iter().filter_map(sentence).collect()
    }

    async fn hear(&mut self, deadline: Instant, is_enough: impl Fn(&Self) -> bool) {
        while !is_enough(self)
            && let Ok(Some((source, update))) = timeout_at(deadline, self.updates.recv()).await
        {
            self.take(source, update);
        }
    }

    fn take(&mut self, source: usize, update: Update) {
        match update {
            Update::Known { container, how, place } => {
                let key = container.key().into_owned();
                self.open.remove(&(source, key.clone()));
                // A runtime itself knows more than what it leaves on disk says.
                if how.is_by_runtime() || !self.is_told_by_runtime(&key) {
                    self.known.insert(key, Known { container, how, place });
                }
            }
            Update::Unknown { key: id } => {
                self.open.remove(&(source, id));
            }
            Update::Gone { key } => {
                self.known.remove(&key);
            }
            Update::State(link) => {
                if link != Link::Connected {
                    self.open.retain(|(asked, _)| *asked != source);
                }
                if let Some(asked) = self.runtimes.get_mut(source) {
                    asked.link = Some(link);
                }
            }
        }
    }
}
