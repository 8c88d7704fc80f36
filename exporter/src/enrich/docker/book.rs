//! What is known of the daemon's containers and images: its messages come in, updates and questions come out.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::decode::{Facts, Seen};
use crate::enrich::How;
use crate::enrich::container::{Container, Image, Reference, is_image_id};
use crate::enrich::runtime::{Place, Update};

/// Most questions to the daemon at any time.
const IN_FLIGHT: usize = 16;
/// Of a list no more is taken in while so many are open: what happens meanwhile has the rest.
const LISTED_IN_FLIGHT: usize = 8;
/// Of what is looked up no more is taken in while so many questions wait to be asked.
const QUESTIONS: usize = 256;
/// Most images remembered.
const IMAGES: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// Most answers that containers wait for.
const WAITING: usize = 1024;

pub struct Book {
    runtime: &'static str,
    known: LruCache<String, Known>,
    /// By reference or id as asked for; `None`: the daemon has no such image (any more).
    images: LruCache<String, Option<Facts>>,
    /// Grows with each change of images, so that an answer to an older question is used but not kept.
    generation: u64,
    /// Containers of a list that are not taken in yet, by id.
    listed: BTreeMap<String, Seen>,
    /// Containers that wait, by the question whose answer they wait for; none where somebody has looked an id up.
    waiting: HashMap<Question, Vec<String>>,
    /// All of them.
    waiters: usize,
    /// How long somebody who looks a container up waits for answers before it is told without.
    patience: Duration,
    /// Those that are still to be put.
    questions: VecDeque<Question>,
    /// Containers looked up before they could be told, and when patience ends.
    due: VecDeque<(Instant, String)>,
    updates: Vec<Update>,
}

struct Known {
    container: Arc<Container>,
    how: How,
    place: Place,
    /// As written, for an image still to come.
    image: Option<String>,
    /// Its configuration is known. It cannot change, but for the name.
    inspected: bool,
    told: bool,
    awaited: Vec<Question>,
    life: Life,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Life {
    Running,
    /// May be started again.
    Ended,
    Destroyed,
}

/// What the daemon is asked to describe.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    /// By its id.
    Container(String),
    /// By its id, or a reference.
    Image(String),
}

pub enum Inspection {
    /// `running`: it may have processes.
    Found {
        seen: Box<Seen>,
        running: bool,
    },
    Missing,
    /// The daemon did not say.
    Failed,
}

pub enum ImageAnswer {
    Found(Facts),
    Missing,
    /// The daemon did not say.
    Failed,
}

impl Book {
    pub fn new(runtime: &'static str, capacity: NonZeroUsize, patience: Duration) -> Self {
        Self {
            runtime,
            known: LruCache::sparse(capacity),
            images: LruCache::sparse(IMAGES),
            generation: 0,
            listed: BTreeMap::new(),
            waiting: HashMap::new(),
            waiters: 0,
            patience,
            questions: VecDeque::new(),
            due: VecDeque::new(),
            updates: Vec::new(),
        }
    }

    /// Takes in, by and by, a list of what runs, and ends what was known of an earlier connection and is not in it.
    pub fn list(&mut self, running: impl Iterator<Item = Seen>) {
        self.listed = running.map(|seen| (seen.container.id.clone(), seen)).collect();
        let known = self.known.iter().map(|(id, _)| id);
        let ended: Vec<_> = known.filter(|id| !self.listed.contains_key(*id)).cloned().collect();
        for id in ended {
            self.end(&id, true);
        }
    }

    /// Takes in what a message shows of a container that is there.
    pub fn describe(&mut self, seen: Seen, how: How) {
        let id = seen.container.id.clone();
        self.listed.remove(&id);
        if !self.known.contains(&id) {
            self.insert(&id, how);
        }
        let changed = self.merge(seen);
        let Some(known) = self.known.get_mut(&id) else { return };
        let back = known.life != Life::Running;
        known.life = Life::Running;
        let ready = if known.told { changed || back } else { known.awaited.is_empty() };
        if ready {
            known.how = how;
            self.tell(&id);
        }
    }

    /// Takes in what the daemon says when it is asked for a container.
    pub fn inspected(&mut self, id: &str, answer: Inspection, now: Instant) {
        let question = Question::Container(id.to_owned());
        self.close(&question);
        match (answer, self.known.peek(id)) {
            (Inspection::Found { mut seen, .. }, Some(known)) => {
                // A rename may have overtaken the answer, and the end of the container will be told.
                seen.container.name = known.container.name.clone().or(seen.container.name);
                let changed = self.merge(*seen);
                self.answered(id, &question, changed);
            }
            (Inspection::Found { seen, running }, None) => {
                self.describe(*seen, How::RuntimeApi);
                // Somebody has asked for it, who should not wait for its image for ever.
                self.due.push_back((now + self.patience, id.to_owned()));
                if !running {
                    self.end(id, false);
                }
            }
            (Inspection::Missing | Inspection::Failed, Some(_)) => self.answered(id, &question, false),
            (Inspection::Missing, None) => self.updates.push(Update::Unknown { key: id.to_owned() }),
            (Inspection::Failed, None) => {}
        }
    }

    /// A container's processes are gone, or it is itself.
    pub fn end(&mut self, id: &str, destroyed: bool) {
        self.listed.remove(id);
        let Some(known) = self.known.get_mut(id) else {
            self.updates.push(Update::Gone { key: id.to_owned() });
            return;
        };
        if known.life == Life::Running && known.told {
            self.updates.push(Update::Gone { key: id.to_owned() });
        }
        known.life = known.life.max(if destroyed { Life::Destroyed } else { Life::Ended });
        self.forget_destroyed(id);
    }

    /// Whether there is room for more questions.
    pub fn takes_lookups(&self) -> bool {
        self.questions.len() < QUESTIONS
    }

    /// Tells of a container, as soon as it is known.
    pub fn look_up(&mut self, id: String, now: Instant) {
        if let Some(seen) = self.listed.remove(&id) {
            self.describe(seen, How::RuntimeApi);
        }
        match self.known.get(&id) {
            Some(known) if known.told => self.tell(&id),
            // It comes by itself within moments. Docker says nothing of a container while it starts it.
            Some(_) => self.due.push_back((now + self.patience, id)),
            None => {
                self.open(Question::Container(id));
            }
        }
    }

    /// The next question to the daemon, with the number to hand back with an image's answer.
    pub fn next_question(&mut self, in_flight: usize) -> Option<(Question, u64)> {
        while self.questions.is_empty()
            && in_flight < LISTED_IN_FLIGHT
            && let Some((_, seen)) = self.listed.pop_first()
        {
            self.describe(seen, How::RuntimeApi);
        }
        if in_flight >= IN_FLIGHT {
            return None;
        }
        Some((self.questions.pop_front()?, self.generation))
    }

    pub fn image(&mut self, reference: &str, generation: u64, answer: ImageAnswer) {
        let (facts, keep) = match answer {
            ImageAnswer::Found(facts) => (Some(facts), true),
            ImageAnswer::Missing => (None, true),
            ImageAnswer::Failed => (None, false),
        };
        let question = Question::Image(reference.to_owned());
        for id in self.close(&question) {
            let Some(known) = self.known.get_mut(&id).filter(|known| known.awaited.contains(&question)) else {
                continue;
            };
            if facts.is_some() {
                complete(Arc::make_mut(&mut known.container), known.image.as_deref(), facts.as_ref());
            }
            self.answered(&id, &question, facts.is_some());
        }
        if keep && generation == self.generation {
            self.images.put(reference.to_owned(), facts);
        }
    }

    pub fn forget_images(&mut self) {
        self.generation += 1;
        self.images.clear();
    }

    /// The connection is lost, and with it all answers.
    pub fn forget_questions(&mut self) {
        while let Some((_, seen)) = self.listed.pop_first() {
            self.describe(seen, How::RuntimeApi);
        }
        self.questions.clear();
        let open: Vec<_> = self.waiting.keys().cloned().collect();
        for question in open {
            match question {
                Question::Container(id) => self.inspected(&id, Inspection::Failed, Instant::now()),
                Question::Image(reference) => self.image(&reference, self.generation, ImageAnswer::Failed),
            }
        }
    }

    pub fn next_due(&mut self) -> Option<Instant> {
        while let Some((due, id)) = self.due.front() {
            if self.known.peek(id).is_some_and(|known| !known.told) {
                return Some(*due);
            }
            self.due.pop_front();
        }
        None
    }

    /// Tells of those that were waited for long enough.
    pub fn publish_due(&mut self, now: Instant) {
        while let Some(due) = self.next_due()
            && due <= now
        {
            if let Some((_, id)) = self.due.pop_front() {
                self.tell(&id);
            }
        }
    }

    pub fn take_updates(&mut self) -> Vec<Update> {
        std::mem::take(&mut self.updates)
    }

    /// Makes room for a container, of which only the id is known so far.
    fn insert(&mut self, id: &str, how: How) {
        let known = Known {
            container: Arc::new(Container::of_id(id.to_owned(), self.runtime)),
            how,
            place: Place::default(),
            image: None,
            inspected: false,
            told: false,
            awaited: Vec::new(),
            life: Life::Running,
        };
        if let Some((_, pushed_out)) = self.known.push(id.to_owned(), known)
            && !pushed_out.told
        {
            let Known { container, how, place, .. } = pushed_out;
            self.updates.push(Update::Known { container, how, place });
        }
    }

    /// Adds what is seen of a container to what is known of it, and asks for the rest. True: something has changed.
    fn merge(&mut self, seen: Seen) -> bool {
        let Seen { container, image, image_id, inspected, pid } = seen;
        let id = container.id.clone();
        let Some(known) = self.known.get_mut(&id) else { return false };
        let before = Arc::clone(&known.container);
        let mut container = if known.inspected {
            Container { name: container.name, ..Container::clone(&before) }
        } else {
            Container { image: before.image.clone(), ..container }
        };
        // A list shows an id where the image has lost its name; an inspection still has the name.
        let named_anew = inspected && !known.inspected && known.image != image;
        let reference = if known.inspected { known.image.clone() } else { image };
        known.inspected |= inspected;
        known.place.pid = pid.or(known.place.pid);
        let mut questions = Vec::new();
        if !known.inspected {
            questions.push(Question::Container(id.clone()));
        }
        // What the image was when the container was made stays true, whatever happens to its tags.
        let kept = container.image.as_ref().and_then(|image| image.id.as_ref());
        let kept = kept.is_some_and(|kept| image_id.as_ref().is_none_or(|id| id == kept));
        if named_anew || !kept {
            container.image = reference.as_deref().map(written);
            if let Some(question) = image_id.or_else(|| reference.clone()) {
                match self.images.get(&question) {
                    Some(facts) => complete(&mut container, reference.as_deref(), facts.as_ref()),
                    None => questions.push(Question::Image(question)),
                }
            }
            known.image = reference;
        }
        let changed = container != *before;
        if changed {
            known.container = Arc::new(container);
        }
        for question in questions {
            self.wait_for(question, &id);
        }
        changed
    }

    fn wait_for(&mut self, question: Question, id: &str) {
        let Some(known) = self.known.get_mut(id) else { return };
        if self.waiters >= WAITING || known.awaited.contains(&question) {
            return;
        }
        known.awaited.push(question.clone());
        self.waiters += 1;
        self.open(question).push(id.to_owned());
    }

    /// Those that wait for the answer to a question, which is put unless it has been.
    fn open(&mut self, question: Question) -> &mut Vec<String> {
        match self.waiting.entry(question) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(new) => {
                self.questions.push_back(new.key().clone());
                new.insert(Vec::new())
            }
        }
    }

    /// Those that have waited for the answer to a question.
    fn close(&mut self, question: &Question) -> Vec<String> {
        let waiting = self.waiting.remove(question).unwrap_or_default();
        self.waiters = self.waiters.saturating_sub(waiting.len());
        waiting
    }

    /// One answer less to wait for.
    fn answered(&mut self, id: &str, question: &Question, changed: bool) {
        let Some(known) = self.known.get_mut(id) else { return };
        known.awaited.retain(|awaited| awaited != question);
        let ready = if known.told { changed } else { known.awaited.is_empty() };
        if ready {
            self.tell(id);
        } else {
            self.forget_destroyed(id);
        }
    }

    fn tell(&mut self, id: &str) {
        let Some(known) = self.known.get_mut(id) else { return };
        known.told = true;
        let (container, place) = (known.container.clone(), known.place.clone());
        self.updates.push(Update::Known { container, how: known.how, place });
        if known.life != Life::Running {
            self.updates.push(Update::Gone { key: id.to_owned() });
        }
        self.forget_destroyed(id);
    }

    fn forget_destroyed(&mut self, id: &str) {
        if self.known.peek(id).is_some_and(|known| known.life == Life::Destroyed && known.awaited.is_empty()) {
            self.known.pop(id);
        }
    }
}

/// An image by the reference alone.
fn written(reference: &str) -> Image {
    Image::of(Reference { digest: None, ..Reference::parse(reference) }, None)
}

/// Adds what the daemon knows of the image. An image without any name (built or run by its id) keeps an empty one.
fn complete(container: &mut Container, reference: Option<&str>, facts: Option<&Facts>) {
    let Some(facts) = facts else { return };
    let image = container.image.get_or_insert_default();
    if image.name.is_empty() || reference.is_some_and(|reference| is_id_of(reference, facts)) {
        let mut names = facts.repo_tags.iter().chain(&facts.repo_digests).map(|named| Reference::parse(named).name);
        names.next().unwrap_or_default().clone_into(&mut image.name);
        image.tags.clear();
    }
    let familiar = Reference::parse(&image.name).familiar_name().to_owned();
    for tag in &facts.repo_tags {
        let reference = Reference::parse(tag);
        if let Some(tag) = reference.tag
            && reference.familiar_name() == familiar
            && !image.tags.iter().any(|known| known == tag)
        {
            image.tags.push(tag.to_owned());
        }
    }
    image.id.clone_from(&facts.id);
    image.repo_digests.clone_from(&facts.repo_digests);
}

/// Shorter words are names, whatever id they happen to begin.
const SHORTEST_ID: usize = 4;

/// Whether a reference is the beginning of the image's id, and no name of it.
fn is_id_of(reference: &str, facts: &Facts) -> bool {
    let id = facts.id.as_deref().unwrap_or_default();
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    (is_image_id(reference) || (reference.len() >= SHORTEST_ID && digits.starts_with(reference)))
        && !facts.repo_tags.iter().any(|tag| Reference::parse(tag).name == reference)
}

#[cfg(test)]
mod tests;
