use std::collections::BTreeSet;

use super::*;
use crate::enrich::container::Service;

const WAIT: Duration = Duration::from_millis(100);

/// All there is to see, but for the image's id; an empty image is none.
fn seen(id: &str, name: &str, image: &str) -> Seen {
    let container = Container { name: Some(name.into()), ..Container::of_id(id.into(), "docker") };
    let image = (!image.is_empty()).then(|| image.to_owned());
    Seen { container, image, image_id: None, inspected: true, pid: None }
}

/// As an event or a list shows it.
fn glimpsed(id: &str, name: &str, image: &str) -> Seen {
    Seen { inspected: false, ..seen(id, name, image) }
}

/// As an inspection shows it.
fn configured(id: &str, name: &str, image: &str, service: &str) -> Inspection {
    let mut seen = seen(id, name, image);
    seen.container.service = Service { name: Some(service.into()), ..Service::default() };
    Inspection::Found { seen: Box::new(seen), running: true }
}

fn facts(id: &str, tags: &[&str]) -> Facts {
    let repo_tags = tags.iter().map(ToString::to_string).collect();
    Facts { id: Some(id.into()), repo_tags, repo_digests: vec!["web@sha256:dd".into()] }
}

fn book() -> Book {
    Book::new("docker", NonZeroUsize::new(8).unwrap(), WAIT)
}

fn next_image(book: &mut Book) -> Option<(String, u64)> {
    let (Question::Image(reference), generation) = book.next_question(0)? else { panic!() };
    Some((reference, generation))
}

/// All that is to be asked now, in short: a container's id, or an image's reference.
fn asked(book: &mut Book) -> Vec<String> {
    let next = |(question, _)| match question {
        Question::Container(text) | Question::Image(text) => text,
    };
    std::iter::from_fn(|| book.next_question(0).map(next)).collect()
}

/// Updates in short: `+name image-id service`, `-id`, `?id`.
fn told(book: &mut Book) -> Vec<String> {
    let show = |update| match update {
        Update::Known { container, .. } => {
            let image = container.image.as_ref().and_then(|image| image.id.as_deref());
            let said = [container.name.as_deref(), image, container.service.name.as_deref()];
            format!("+{}", said.into_iter().flatten().collect::<Vec<_>>().join(" "))
        }
        Update::Gone { key: id } => format!("-{id}"),
        Update::Unknown { key: id } => format!("?{id}"),
        Update::State(state) => format!("{state:?}"),
    };
    book.take_updates().into_iter().map(show).collect()
}

#[test]
fn a_container_is_told_with_its_image_and_the_next_one_at_once() {
    let mut book = book();
    book.describe(seen("a", "one", "web:2"), How::RuntimeEvent);
    book.describe(seen("a", "one", "web:2"), How::RuntimeEvent);
    assert!(told(&mut book).is_empty());
    let (question, generation) = next_image(&mut book).unwrap();
    assert_eq!((question.as_str(), next_image(&mut book)), ("web:2", None));
    book.image(&question, generation, ImageAnswer::Found(facts("sha256:11", &["web:2", "web:latest", "other:2"])));
    let update = book.take_updates().remove(0);
    let Update::Known { container, how: How::RuntimeEvent, .. } = update else { panic!() };
    let image = container.image.clone().unwrap();
    assert_eq!((image.name.as_str(), image.tags), ("web", vec!["2".to_owned(), "latest".to_owned()]));
    assert_eq!((image.id.as_deref(), image.repo_digests.len()), (Some("sha256:11"), 1));
    book.describe(seen("b", "two", "web:2"), How::RuntimeEvent);
    assert_eq!(told(&mut book), ["+two sha256:11"]);
}

#[test]
fn a_slow_image_delays_its_container_by_no_more_than_its_time() {
    let (mut book, now) = (book(), Instant::now());
    book.describe(seen("a", "one", "web"), How::RuntimeEvent);
    assert_eq!(book.next_due(), None, "nobody waits for it");
    book.look_up("a".into(), now);
    assert_eq!(book.next_due(), Some(now + WAIT));
    book.publish_due(now);
    assert!(told(&mut book).is_empty());
    book.publish_due(now + WAIT);
    assert_eq!((told(&mut book), book.next_due()), (vec!["+one".to_owned()], None));
    let (question, generation) = next_image(&mut book).unwrap();
    book.image(&question, generation, ImageAnswer::Found(facts("sha256:11", &["web:latest"])));
    assert_eq!(told(&mut book), ["+one sha256:11"]);
}

#[test]
fn a_container_that_ends_before_its_image_is_known_is_told_before_it_is_gone() {
    let mut book = book();
    book.describe(seen("a", "one", "web"), How::RuntimeEvent);
    book.end("a", false);
    book.end("a", true);
    assert!(told(&mut book).is_empty());
    let (question, generation) = next_image(&mut book).unwrap();
    book.image(&question, generation, ImageAnswer::Found(facts("sha256:11", &["web:latest"])));
    assert_eq!(told(&mut book), ["+one sha256:11", "-a"]);
    assert!(!book.known.contains("a"));
}

#[test]
fn a_missing_image_or_a_failed_question_leaves_what_was_written() {
    let mut book = book();
    for (id, answer) in [("a", ImageAnswer::Missing), ("b", ImageAnswer::Failed)] {
        book.describe(seen(id, id, "gone:1"), How::RuntimeApi);
        if let Some((question, generation)) = next_image(&mut book) {
            book.image(&question, generation, answer);
        }
        assert_eq!(told(&mut book), [format!("+{id}")]);
    }
}

#[test]
fn an_answer_older_than_a_change_of_images_is_not_kept() {
    let mut book = book();
    book.describe(seen("a", "one", "web"), How::RuntimeEvent);
    let (question, generation) = next_image(&mut book).unwrap();
    book.forget_images();
    book.image(&question, generation, ImageAnswer::Found(facts("sha256:11", &["web:latest"])));
    book.describe(seen("b", "two", "web"), How::RuntimeEvent);
    assert_eq!(told(&mut book), ["+one sha256:11"]);
    assert!(next_image(&mut book).is_some());
}

#[test]
fn a_rename_keeps_the_image_and_a_restart_is_told_again() {
    let mut book = book();
    book.describe(seen("a", "one", "web"), How::RuntimeEvent);
    let (question, generation) = next_image(&mut book).unwrap();
    book.image(&question, generation, ImageAnswer::Found(facts("sha256:11", &["web:latest"])));
    book.forget_images();
    book.describe(seen("a", "new", "web"), How::RuntimeEvent);
    book.end("a", false);
    book.describe(seen("a", "new", "web"), How::RuntimeEvent);
    book.end("a", true);
    assert_eq!(told(&mut book), ["+one sha256:11", "+new sha256:11", "-a", "+new sha256:11", "-a"]);
}

#[test]
fn an_image_given_by_id_is_called_by_its_first_name() {
    for reference in ["sha256:11aa22bb33cc", "11aa22bb33cc", "11aa"] {
        for (tags, name, tag) in [(&["web:2", "x:1"][..], "web", Some("2")), (&[], "web", None)] {
            let mut book = book();
            book.describe(seen("a", "one", reference), How::RuntimeApi);
            let (question, generation) = next_image(&mut book).unwrap();
            book.image(&question, generation, ImageAnswer::Found(facts("sha256:11aa22bb33cc", tags)));
            let Update::Known { container, .. } = book.take_updates().remove(0) else { panic!() };
            let image = container.image.clone().unwrap();
            assert_eq!((image.name.as_str(), image.tags.first().map(String::as_str)), (name, tag), "{reference}");
        }
    }
}

#[test]
fn what_a_new_list_lacks_is_gone() {
    let mut book = book();
    let listed = |id| seen(id, id, "");
    for id in ["a", "b"] {
        book.describe(listed(id), How::RuntimeApi);
    }
    book.list([listed("a")].into_iter());
    assert_eq!(told(&mut book), ["+a", "+b", "-b"]);
}

#[test]
fn thousands_of_containers_that_wait_stay_bounded() {
    let (mut book, now) = (book(), Instant::now());
    for number in 0..5000 {
        let id = number.to_string();
        book.describe(glimpsed(&id, &id, &format!("image{number}")), How::RuntimeEvent);
        book.look_up(id, now);
        book.next_due();
    }
    assert!(book.due.len() <= WAITING && book.waiting.len() <= WAITING && book.known.len() <= 8);
    book.publish_due(now + WAIT);
    assert_eq!(told(&mut book).into_iter().collect::<BTreeSet<_>>().len(), 5000);
    book.forget_questions();
    assert!(book.waiting.is_empty() && book.questions.is_empty() && book.waiters == 0);
}

#[test]
fn a_container_is_told_with_its_configuration_and_asked_for_once() {
    let (mut book, now) = (book(), Instant::now());
    for _ in ["create", "start"] {
        book.describe(glimpsed("a", "one", ""), How::RuntimeEvent);
    }
    book.look_up("a".into(), now);
    assert_eq!(asked(&mut book), ["a"]);
    assert!(told(&mut book).is_empty());
    book.inspected("a", configured("a", "one", "", "shop"), Instant::now());
    let update = book.take_updates().remove(0);
    let Update::Known { container, how: How::RuntimeEvent, .. } = update else { panic!() };
    assert_eq!(container.service.name.as_deref(), Some("shop"));
    book.end("a", false);
    book.describe(glimpsed("a", "one", ""), How::RuntimeEvent);
    assert_eq!(told(&mut book), ["-a", "+one shop"]);
    assert!(asked(&mut book).is_empty());
}

#[test]
fn a_container_waits_for_both_its_answers_in_either_order() {
    for container_first in [false, true] {
        let mut book = book();
        book.describe(glimpsed("a", "one", "web"), How::RuntimeEvent);
        assert_eq!(asked(&mut book), ["a", "web"]);
        let image = |book: &mut Book| book.image("web", 0, ImageAnswer::Found(facts("sha256:11", &["web:latest"])));
        if !container_first {
            image(&mut book);
        }
        assert!(told(&mut book).is_empty());
        book.inspected("a", configured("a", "one", "web", "shop"), Instant::now());
        if container_first {
            assert!(told(&mut book).is_empty());
            image(&mut book);
        }
        assert_eq!(told(&mut book), ["+one sha256:11 shop"]);
        assert_eq!((book.next_due(), book.waiters), (None, 0));
    }
}

#[test]
fn a_slow_inspection_delays_its_container_by_no_more_than_its_time() {
    let (mut book, now) = (book(), Instant::now());
    book.describe(glimpsed("a", "one", ""), How::RuntimeEvent);
    book.look_up("a".into(), now);
    book.publish_due(now);
    assert!(told(&mut book).is_empty());
    book.publish_due(now + WAIT);
    assert_eq!((told(&mut book), book.next_due()), (vec!["+one".to_owned()], None));
    book.inspected("a", configured("a", "one", "", "shop"), Instant::now());
    assert_eq!(told(&mut book), ["+one shop"]);
}

#[test]
fn a_slow_image_delays_a_container_that_was_looked_up_first_by_no_more_than_its_time() {
    let (mut book, now) = (book(), Instant::now());
    book.look_up("a".into(), now);
    assert_eq!(asked(&mut book), ["a"]);
    book.inspected("a", configured("a", "one", "web", "shop"), now);
    assert!(told(&mut book).is_empty());
    book.publish_due(now + WAIT);
    assert_eq!((told(&mut book), book.next_due()), (vec!["+one shop".to_owned()], None));
}

#[test]
fn after_a_failed_inspection_the_next_event_asks_again_and_nothing_else_does() {
    for failure in [Inspection::Failed, Inspection::Missing] {
        let (mut book, now) = (book(), Instant::now());
        let event = || glimpsed("a", "one", "");
        book.describe(event(), How::RuntimeEvent);
        assert_eq!(asked(&mut book), ["a"]);
        book.inspected("a", failure, Instant::now());
        book.look_up("a".into(), now);
        assert_eq!(told(&mut book), ["+one", "+one"]);
        assert!(asked(&mut book).is_empty());
        book.describe(event(), How::RuntimeEvent);
        assert_eq!(asked(&mut book), ["a"]);
        assert!(told(&mut book).is_empty());
        book.inspected("a", configured("a", "one", "", "shop"), Instant::now());
        assert_eq!(told(&mut book), ["+one shop"]);
    }
}

#[test]
fn an_inspection_does_not_undo_a_rename_nor_a_rename_an_inspection() {
    let mut book = book();
    book.describe(glimpsed("a", "new", "web"), How::RuntimeEvent);
    book.image("web", 0, ImageAnswer::Found(facts("sha256:11", &["web:latest"])));
    book.inspected("a", configured("a", "old", "web", "shop"), Instant::now());
    book.describe(glimpsed("a", "newer", "sha256:11"), How::RuntimeEvent);
    assert_eq!(told(&mut book), ["+new sha256:11 shop", "+newer sha256:11 shop"]);
}

#[test]
fn a_container_that_ends_while_it_is_asked_for_is_told_before_it_is_gone() {
    for answer in [configured("a", "one", "", "shop"), Inspection::Missing] {
        let mut book = book();
        book.describe(glimpsed("a", "one", ""), How::RuntimeEvent);
        book.end("a", true);
        book.inspected("a", answer, Instant::now());
        let told = told(&mut book);
        assert!(told[0].starts_with("+one") && told[1] == "-a" && told.len() == 2, "{told:?}");
        assert!(!book.known.contains("a"));
    }
}

#[test]
fn who_is_looked_up_is_asked_for_once_and_told() {
    let (mut book, now) = (book(), Instant::now());
    for id in ["a", "a", "b", "c"] {
        book.look_up(id.into(), now);
    }
    assert_eq!(asked(&mut book), ["a", "b", "c"]);
    let Inspection::Found { seen, .. } = configured("a", "one", "", "shop") else { panic!() };
    book.inspected("a", Inspection::Found { seen, running: false }, Instant::now());
    book.inspected("b", Inspection::Missing, Instant::now());
    book.inspected("c", Inspection::Failed, Instant::now());
    assert_eq!(told(&mut book), ["+one shop", "-a", "?b"]);
}

#[test]
fn a_long_list_is_asked_for_little_by_little_and_whoever_is_looked_up_first() {
    let (mut book, now) = (Book::new("docker", NonZeroUsize::new(1000).unwrap(), WAIT), Instant::now());
    let id = |number| format!("{number:03}");
    book.list((0..500).map(|number| glimpsed(&id(number), &id(number), "")));
    let mut in_flight = VecDeque::new();
    let ask = |book: &mut Book, in_flight: &mut VecDeque<_>| {
        while let Some((question, _)) = book.next_question(in_flight.len()) {
            in_flight.push_back(question);
        }
    };
    ask(&mut book, &mut in_flight);
    assert_eq!((in_flight.len(), book.due.len()), (LISTED_IN_FLIGHT, 0));
    book.look_up(id(499), now);
    ask(&mut book, &mut in_flight);
    assert_eq!(in_flight.back(), Some(&Question::Container(id(499))));
    book.end(&id(498), false);
    for number in 0..400 {
        book.describe(glimpsed(&format!("new{number}"), "new", "web"), How::RuntimeEvent);
        ask(&mut book, &mut in_flight);
    }
    assert_eq!(in_flight.len(), IN_FLIGHT);
    let mut answers = 0;
    while let Some(question) = in_flight.pop_front() {
        match question {
            Question::Container(id) => book.inspected(&id, configured(&id, &id, "web", "shop"), Instant::now()),
            Question::Image(reference) => book.image(&reference, 0, ImageAnswer::Missing),
        }
        answers += 1;
        ask(&mut book, &mut in_flight);
    }
    assert_eq!(answers, 499 + 400 + 1);
    let told = told(&mut book);
    assert!(told.iter().all(|update| update.ends_with(" shop") || update == "-498"), "{told:?}");
    assert_eq!(told.len(), 500 + 400);
}

#[test]
fn of_an_image_that_has_lost_its_name_the_inspection_still_tells_it() {
    let mut book = book();
    let listed = Seen { image_id: Some("sha256:11".into()), ..glimpsed("a", "one", "sha256:11") };
    book.list([listed.clone()].into_iter());
    assert_eq!(asked(&mut book), ["a", "sha256:11"]);
    book.image("sha256:11", 0, ImageAnswer::Found(Facts { id: Some("sha256:11".into()), ..Facts::default() }));
    let Inspection::Found { mut seen, running } = configured("a", "one", "web:2", "shop") else { panic!() };
    seen.image_id = Some("sha256:11".into());
    book.inspected("a", Inspection::Found { seen, running }, Instant::now());
    book.list([listed].into_iter());
    assert!(asked(&mut book).is_empty());
    let updates = book.take_updates();
    let [Update::Known { container, .. }] = updates.as_slice() else { panic!("{updates:?}") };
    let image = container.image.clone().unwrap();
    assert_eq!(
        (image.name.as_str(), image.tags, image.id.as_deref()),
        ("web", vec!["2".to_owned()], Some("sha256:11"))
    );
}

#[test]
fn a_connection_that_is_lost_leaves_nobody_untold() {
    let (mut book, now) = (book(), Instant::now());
    book.list(["a", "b"].into_iter().map(|id| glimpsed(id, id, "web")));
    book.next_question(LISTED_IN_FLIGHT - 1);
    book.look_up("x".into(), now);
    book.forget_questions();
    let mut told = told(&mut book);
    told.sort_unstable();
    assert_eq!(told, ["+a", "+b"]);
    assert!(book.waiting.is_empty() && book.waiters == 0 && book.next_due().is_none());
}
