//! What has been told of a runtime's containers: what the runtime shows of them comes in, updates go out.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use super::How;
use super::container::Container;
use super::runtime::{Place, Update};

/// A container as its runtime shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub container: Container,
    pub place: Place,
    /// It has processes, or is about to have them.
    pub running: bool,
}

pub struct Told {
    /// By [key](Container::key).
    known: LruCache<String, Known>,
    updates: Vec<Update>,
}

struct Known {
    container: Arc<Container>,
    place: Place,
    how: How,
    running: bool,
}

impl Told {
    /// Remembers so many containers.
    #[must_use]
    pub fn new(capacity: NonZeroUsize) -> Self {
        Self { known: LruCache::sparse(capacity), updates: Vec::new() }
    }

    /// What ran and is not among these keys has ended.
    pub fn only(&mut self, running: &HashSet<String>) {
        let unlisted = self.known.iter().filter(|(key, known)| known.running && !running.contains(*key));
        let ended: Vec<_> = unlisted.map(|(key, _)| key.clone()).collect();
        for key in ended {
            self.ended(&key);
        }
    }

    /// Tells of a container, whether or not it has changed.
    pub fn seen(&mut self, seen: Seen, how: How) {
        let Seen { container, mut place, running } = seen;
        let key = container.key().into_owned();
        let before = self.known.pop(&key);
        place.pid = place.pid.or(before.as_ref().and_then(|known| known.place.pid));
        let known = match before {
            Some(known) if *known.container == container => Known { place, running, ..known },
            _ => Known { container: Arc::new(container), place, how, running },
        };
        known.tell(&key, &mut self.updates);
        self.known.put(key, known);
    }

    /// Its first process has been made. False: the container is not known.
    pub fn started(&mut self, key: &str, pid: Option<u32>) -> bool {
        let Some(known) = self.known.get_mut(key) else { return false };
        if known.running && known.place.pid == pid {
            return true;
        }
        known.running = true;
        known.place.pid = pid;
        known.tell(key, &mut self.updates);
        true
    }

    /// Its processes are gone.
    pub fn ended(&mut self, key: &str) {
        let ran = self.known.get_mut(key).is_none_or(|known| {
            known.place.pid = None;
            std::mem::take(&mut known.running)
        });
        if ran {
            self.updates.push(Update::Gone { key: key.to_owned() });
        }
    }

    /// It is itself gone.
    pub fn removed(&mut self, key: &str) {
        self.ended(key);
        self.known.pop(key);
    }

    /// Tells once more of a container that has been told of. False: it is not known.
    pub fn again(&mut self, key: &str) -> bool {
        let Some(known) = self.known.get(key) else { return false };
        known.tell(key, &mut self.updates);
        true
    }

    /// Whether it has processes, as far as it is known.
    #[must_use]
    pub fn running(&self, key: &str) -> Option<bool> {
        self.known.peek(key).map(|known| known.running)
    }

    pub fn unknown(&mut self, id: String) {
        self.updates.push(Update::Unknown { key: id });
    }

    pub fn take_updates(&mut self) -> Vec<Update> {
        std::mem::take(&mut self.updates)
    }
}

impl Known {
    fn tell(&self, key: &str, updates: &mut Vec<Update>) {
        let (container, place) = (Arc::clone(&self.container), self.place.clone());
        updates.push(Update::Known { container, how: self.how, place });
        if !self.running {
            updates.push(Update::Gone { key: key.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrich::container::{Described, Labels};

    fn seen(id: &str, running: bool) -> Seen {
        let described = Described { id: id.to_owned(), namespace: Some("default".to_owned()), ..Described::default() };
        let container = Container::described("containerd", described, &Labels::default());
        Seen { container, place: Place::default(), running }
    }

    fn told(told: &mut Told) -> Vec<String> {
        let text = |update| match update {
            Update::Known { container, how, place } => format!("{} {} {:?}", container.id, how.as_str(), place.pid),
            Update::Unknown { key: id } => format!("unknown {id}"),
            Update::Gone { key } => format!("gone {key}"),
            Update::State(link) => format!("{link:?}"),
        };
        told.take_updates().into_iter().map(text).collect()
    }

    fn told_new() -> Told {
        Told::new(NonZeroUsize::new(2).unwrap())
    }

    const KEY: &str = "containerd/default/a";

    #[test]
    fn a_container_comes_starts_ends_and_starts_again() {
        let mut book = told_new();
        assert!(!book.started(KEY, Some(1)) && !book.again(KEY) && book.running(KEY).is_none());
        book.seen(seen("a", true), How::RuntimeEvent);
        assert!(book.started(KEY, Some(7)) && book.started(KEY, Some(7)));
        assert_eq!(told(&mut book), ["a runtime_event None", "a runtime_event Some(7)"]);
        book.ended(KEY);
        book.ended(KEY);
        assert_eq!(told(&mut book), [format!("gone {KEY}")]);
        assert!(book.started(KEY, Some(8)));
        book.ended(KEY);
        book.removed(KEY);
        assert_eq!(told(&mut book), ["a runtime_event Some(8)".to_owned(), format!("gone {KEY}")]);
    }

    #[test]
    fn what_a_list_does_not_show_has_ended() {
        let mut book = told_new();
        for id in ["a", "b"] {
            book.seen(seen(id, true), How::RuntimeApi);
        }
        told(&mut book);
        let listed = HashSet::from(["containerd/default/b".to_owned()]);
        book.only(&listed);
        book.only(&listed);
        assert_eq!(told(&mut book), [format!("gone {KEY}")]);
    }

    #[test]
    fn who_does_not_run_is_told_with_its_end() {
        let mut book = told_new();
        book.seen(seen("a", false), How::RuntimeApi);
        assert!(book.again(KEY));
        let both = ["a runtime_api None".to_owned(), format!("gone {KEY}")];
        assert_eq!(told(&mut book), [both.clone(), both].concat());
    }

    #[test]
    fn a_container_seen_again_keeps_its_process_and_how_it_was_found() {
        let mut book = told_new();
        book.seen(seen("a", true), How::RuntimeEvent);
        book.started(KEY, Some(7));
        book.seen(seen("a", true), How::RuntimeApi);
        assert_eq!(told(&mut book).last().unwrap(), "a runtime_event Some(7)");
    }
}
