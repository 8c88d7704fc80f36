//! What is known of the daemon's containers and images: its messages come in, updates and questions come out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::decode::{Facts, Seen};
use crate::enrich::container::{Container, Image, Reference, is_image_id};
use crate::enrich::{How, Update};

/// Most images remembered.
const IMAGES: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// Most containers that wait for their image.
const WAITING: usize = 1024;
/// How long a container waits for its image before it is told without.
const IMAGE_WAIT: Duration = Duration::from_millis(100);

pub struct Book {
    known: LruCache<String, Known>,
    /// By reference or id as asked for; `None`: the daemon has no such image (any more).
    images: LruCache<String, Option<Facts>>,
    /// Grows with each change of images, so that an answer to an older question is used but not kept.
    generation: u64,
    /// Containers that wait, by the image they wait for.
    waiting: HashMap<String, Vec<String>>,
    /// All of them.
    waiters: usize,
    questions: VecDeque<String>,
    due: VecDeque<(Instant, String)>,
    updates: Vec<Update>,
}

struct Known {
    container: Arc<Container>,
    how: How,
    /// As written, for an image still to come.
    image: Option<String>,
    told: bool,
    waits: bool,
    life: Life,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Life {
    Running,
    /// May be started again.
    Ended,
    Destroyed,
}

pub enum ImageAnswer {
    Found(Facts),
    Missing,
    /// The daemon did not say.
    Failed,
}

pub enum Lookup {
    Answered,
    Ask,
}

impl Book {
    pub fn new(capacity: NonZeroUsize) -> Self {
        Self {
            known: LruCache::sparse(capacity),
            images: LruCache::sparse(IMAGES),
            generation: 0,
            waiting: HashMap::new(),
            waiters: 0,
            questions: VecDeque::new(),
            due: VecDeque::new(),
            updates: Vec::new(),
        }
    }

    /// Takes in what a message shows of a container that is there.
    pub fn describe(&mut self, seen: Seen, how: How, now: Instant) {
        let Seen { id, name, image, image_id, labels } = seen;
        let before = self.known.get(&id);
        let mut container = Container { id: id.clone(), runtime: "docker", name, image: None, labels };
        // What the image was when the container was made stays true, whatever happens to its tags.
        let kept = before
            .and_then(|before| before.container.image.as_ref())
            .filter(|kept| kept.id.is_some() && (image_id.is_none() || image_id == kept.id));
        let question = if let Some(kept) = kept {
            container.image = Some(kept.clone());
            None
        } else {
            container.image = image.as_deref().map(written);
            let question = image_id.or_else(|| image.clone());
            match question.as_ref().and_then(|question| self.images.get(question)) {
                Some(facts) => {
                    complete(&mut container, image.as_deref(), facts.as_ref());
                    None
                }
                None => question,
            }
        };
        if before.is_some_and(|before| before.told && before.life == Life::Running && *before.container == container) {
            return;
        }
        if let Some(known) = self.known.get_mut(&id).filter(|known| known.waits && known.image == image) {
            known.container = Arc::new(container);
            known.life = Life::Running;
            if known.told {
                self.tell(&id);
            }
            return;
        }
        let waits = question.is_some_and(|question| self.wait_for(question, &id, now));
        let known = Known { container: Arc::new(container), how, image, told: false, waits, life: Life::Running };
        if let Some((pushed_out, untold)) = self.known.push(id.clone(), known)
            && pushed_out != id
            && !untold.told
        {
            self.updates.push(Update::Known { container: untold.container, how: untold.how });
        }
        if !waits {
            self.tell(&id);
        }
    }

    /// A container's processes are gone, or it is itself.
    pub fn end(&mut self, id: &str, destroyed: bool) {
        let Some(known) = self.known.get_mut(id) else {
            self.updates.push(Update::Gone { id: id.to_owned() });
            return;
        };
        if known.life == Life::Running && known.told {
            self.updates.push(Update::Gone { id: id.to_owned() });
        }
        known.life = known.life.max(if destroyed { Life::Destroyed } else { Life::Ended });
        if known.life == Life::Destroyed && !known.waits {
            self.known.pop(id);
        }
    }

    /// Ends what was known of an earlier connection and is not in this list of what runs.
    pub fn keep_only(&mut self, running: &HashSet<&str>) {
        let ended: Vec<_> =
            self.known.iter().map(|(id, _)| id).filter(|id| !running.contains(id.as_str())).cloned().collect();
        for id in ended {
            self.end(&id, true);
        }
    }

    pub fn knows(&self, id: &str) -> bool {
        self.known.contains(id)
    }

    pub fn unknown(&mut self, id: String) {
        self.updates.push(Update::Unknown { id });
    }

    pub fn look_up(&mut self, id: &str) -> Lookup {
        match self.known.get(id) {
            Some(known) if known.told => self.tell(id),
            // It comes by itself within moments.
            Some(_) => {}
            None => return Lookup::Ask,
        }
        Lookup::Answered
    }

    /// The next image to ask the daemon for, with the number to hand back with the answer.
    pub fn next_image(&mut self) -> Option<(String, u64)> {
        Some((self.questions.pop_front()?, self.generation))
    }

    pub fn image(&mut self, question: &str, generation: u64, answer: ImageAnswer) {
        let (facts, keep) = match answer {
            ImageAnswer::Found(facts) => (Some(facts), true),
            ImageAnswer::Missing => (None, true),
            ImageAnswer::Failed => (None, false),
        };
        let waiting = self.waiting.remove(question).unwrap_or_default();
        self.waiters = self.waiters.saturating_sub(waiting.len());
        for id in waiting {
            let Some(known) = self.known.get_mut(&id).filter(|known| known.waits) else { continue };
            known.waits = false;
            if facts.is_some() {
                complete(Arc::make_mut(&mut known.container), known.image.as_deref(), facts.as_ref());
            }
            if facts.is_some() || !known.told {
                self.tell(&id);
            } else if known.life == Life::Destroyed {
                self.known.pop(&id);
            }
        }
        if keep && generation == self.generation {
            self.images.put(question.to_owned(), facts);
        }
    }

    pub fn forget_images(&mut self) {
        self.generation += 1;
        self.images.clear();
    }

    /// The connection is lost, and with it all answers.
    pub fn forget_questions(&mut self) {
        self.questions.clear();
        let open: Vec<_> = self.waiting.keys().cloned().collect();
        for question in open {
            self.image(&question, self.generation, ImageAnswer::Failed);
        }
    }

    pub fn next_due(&mut self) -> Option<Instant> {
        while let Some((due, id)) = self.due.front() {
            if self.known.peek(id).is_some_and(|known| known.waits && !known.told) {
                return Some(*due);
            }
            self.due.pop_front();
        }
        None
    }

    /// Tells of those that have waited long enough.
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

    fn wait_for(&mut self, question: String, id: &str, now: Instant) -> bool {
        if self.waiters >= WAITING {
            return false;
        }
        self.waiters += 1;
        let waiting = self.waiting.entry(question.clone()).or_default();
        if waiting.is_empty() {
            self.questions.push_back(question);
        }
        waiting.push(id.to_owned());
        self.due.push_back((now + IMAGE_WAIT, id.to_owned()));
        true
    }

    fn tell(&mut self, id: &str) {
        let Some(known) = self.known.get_mut(id) else { return };
        known.told = true;
        self.updates.push(Update::Known { container: known.container.clone(), how: known.how });
        if known.life != Life::Running {
            self.updates.push(Update::Gone { id: id.to_owned() });
        }
        if known.life == Life::Destroyed && !known.waits {
            self.known.pop(id);
        }
    }
}

/// An image by the reference alone.
fn written(reference: &str) -> Image {
    let Reference { name, tag, .. } = Reference::parse(reference);
    Image { name: name.to_owned(), tags: tag.map(ToOwned::to_owned).into_iter().collect(), ..Image::default() }
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
mod tests {
    use super::*;

    fn seen(id: &str, name: &str, image: &str) -> Seen {
        Seen { id: id.into(), name: Some(name.into()), image: Some(image.into()), image_id: None, labels: Vec::new() }
    }

    fn facts(id: &str, tags: &[&str]) -> Facts {
        let repo_tags = tags.iter().map(ToString::to_string).collect();
        Facts { id: Some(id.into()), repo_tags, repo_digests: vec!["web@sha256:dd".into()] }
    }

    fn book() -> Book {
        Book::new(NonZeroUsize::new(8).unwrap())
    }

    /// Updates in short: `+name image-id`, `-id`, `?id`.
    fn told(book: &mut Book) -> Vec<String> {
        let show = |update| match update {
            Update::Known { container, .. } => {
                let id = container.image.as_ref().and_then(|image| image.id.clone());
                format!("+{} {}", container.name.as_deref().unwrap_or_default(), id.unwrap_or_default())
            }
            Update::Gone { id } => format!("-{id}"),
            Update::Unknown { id } => format!("?{id}"),
            Update::State(state) => format!("{state:?}"),
        };
        book.take_updates().into_iter().map(show).collect()
    }

    #[test]
    fn a_container_is_told_with_its_image_and_the_next_one_at_once() {
        let (mut book, now) = (book(), Instant::now());
        book.describe(seen("a", "one", "web:2"), How::RuntimeEvent, now);
        book.describe(seen("a", "one", "web:2"), How::RuntimeEvent, now);
        assert!(told(&mut book).is_empty());
        let (question, generation) = book.next_image().unwrap();
        assert_eq!((question.as_str(), book.next_image()), ("web:2", None));
        book.image(&question, generation, ImageAnswer::Found(facts("sha256:11", &["web:2", "web:latest", "other:2"])));
        let update = book.take_updates().remove(0);
        let Update::Known { container, how: How::RuntimeEvent } = update else { panic!() };
        let image = container.image.clone().unwrap();
        assert_eq!((image.name.as_str(), image.tags), ("web", vec!["2".to_owned(), "latest".to_owned()]));
        assert_eq!((image.id.as_deref(), image.repo_digests.len()), (Some("sha256:11"), 1));
        book.describe(seen("b", "two", "web:2"), How::RuntimeEvent, now);
        assert_eq!(told(&mut book), ["+two sha256:11"]);
    }

    #[test]
    fn a_slow_image_delays_its_container_by_no_more_than_its_time() {
        let (mut book, now) = (book(), Instant::now());
        book.describe(seen("a", "one", "web"), How::RuntimeEvent, now);
        assert_eq!(book.next_due(), Some(now + IMAGE_WAIT));
        book.publish_due(now);
        assert!(told(&mut book).is_empty());
        book.publish_due(now + IMAGE_WAIT);
        assert_eq!((told(&mut book), book.next_due()), (vec!["+one ".to_owned()], None));
        let (question, generation) = book.next_image().unwrap();
        book.image(&question, generation, ImageAnswer::Found(facts("sha256:11", &["web:latest"])));
        assert_eq!(told(&mut book), ["+one sha256:11"]);
    }

    #[test]
    fn a_container_that_ends_before_its_image_is_known_is_told_before_it_is_gone() {
        let (mut book, now) = (book(), Instant::now());
        book.describe(seen("a", "one", "web"), How::RuntimeEvent, now);
        book.end("a", false);
        book.end("a", true);
        assert!(told(&mut book).is_empty());
        let (question, generation) = book.next_image().unwrap();
        book.image(&question, generation, ImageAnswer::Found(facts("sha256:11", &["web:latest"])));
        assert_eq!(told(&mut book), ["+one sha256:11", "-a"]);
        assert!(!book.knows("a"));
    }

    #[test]
    fn a_missing_image_or_a_failed_question_leaves_what_was_written() {
        let (mut book, now) = (book(), Instant::now());
        for (id, answer) in [("a", ImageAnswer::Missing), ("b", ImageAnswer::Failed)] {
            book.describe(seen(id, id, "gone:1"), How::RuntimeApi, now);
            if let Some((question, generation)) = book.next_image() {
                book.image(&question, generation, answer);
            }
            assert_eq!(told(&mut book), [format!("+{id} ")]);
        }
    }

    #[test]
    fn an_answer_older_than_a_change_of_images_is_not_kept() {
        let (mut book, now) = (book(), Instant::now());
        book.describe(seen("a", "one", "web"), How::RuntimeEvent, now);
        let (question, generation) = book.next_image().unwrap();
        book.forget_images();
        book.image(&question, generation, ImageAnswer::Found(facts("sha256:11", &["web:latest"])));
        book.describe(seen("b", "two", "web"), How::RuntimeEvent, now);
        assert_eq!(told(&mut book), ["+one sha256:11"]);
        assert!(book.next_image().is_some());
    }

    #[test]
    fn a_rename_keeps_the_image_and_a_restart_is_told_again() {
        let (mut book, now) = (book(), Instant::now());
        book.describe(seen("a", "one", "web"), How::RuntimeEvent, now);
        let (question, generation) = book.next_image().unwrap();
        book.image(&question, generation, ImageAnswer::Found(facts("sha256:11", &["web:latest"])));
        book.forget_images();
        book.describe(seen("a", "new", "web"), How::RuntimeEvent, now);
        book.end("a", false);
        book.describe(seen("a", "new", "web"), How::RuntimeEvent, now);
        book.end("a", true);
        assert_eq!(told(&mut book), ["+one sha256:11", "+new sha256:11", "-a", "+new sha256:11", "-a"]);
    }

    #[test]
    fn an_image_given_by_id_is_called_by_its_first_name() {
        for reference in ["sha256:11aa22bb33cc", "11aa22bb33cc", "11aa"] {
            for (tags, name, tag) in [(&["web:2", "x:1"][..], "web", Some("2")), (&[], "web", None)] {
                let (mut book, now) = (book(), Instant::now());
                book.describe(seen("a", "one", reference), How::RuntimeApi, now);
                let (question, generation) = book.next_image().unwrap();
                book.image(&question, generation, ImageAnswer::Found(facts("sha256:11aa22bb33cc", tags)));
                let Update::Known { container, .. } = book.take_updates().remove(0) else { panic!() };
                let image = container.image.clone().unwrap();
                assert_eq!((image.name.as_str(), image.tags.first().map(String::as_str)), (name, tag), "{reference}");
            }
        }
    }

    #[test]
    fn what_a_new_list_lacks_is_gone() {
        let (mut book, now) = (book(), Instant::now());
        for id in ["a", "b"] {
            book.describe(Seen { image: None, ..seen(id, id, "") }, How::RuntimeApi, now);
        }
        book.keep_only(&HashSet::from(["a"]));
        assert_eq!(told(&mut book), ["+a ", "+b ", "-b"]);
    }

    #[test]
    fn thousands_of_containers_that_wait_stay_bounded() {
        let (mut book, now) = (book(), Instant::now());
        for number in 0..5000 {
            let id = number.to_string();
            book.describe(seen(&id, &id, &format!("image{number}")), How::RuntimeEvent, now);
            book.next_due();
        }
        assert!(book.due.len() <= WAITING && book.waiting.len() <= WAITING && book.known.len() <= 8);
        book.publish_due(now + IMAGE_WAIT);
        assert_eq!(told(&mut book).len(), 5000);
        book.forget_questions();
        assert!(book.waiting.is_empty() && book.questions.is_empty());
    }
}
