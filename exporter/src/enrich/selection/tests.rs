//! Patterns against a matcher that tries everything, and a table of who is wanted.

use proptest::prelude::*;

use super::*;
use crate::enrich::container::Pod;

/// By its definition: slow, and plainly right.
fn matches_by_definition(pattern: &[char], text: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        ['*', rest @ ..] => (0..=text.len()).any(|taken| matches_by_definition(rest, &text[taken..])),
        ['?', rest @ ..] => !text.is_empty() && matches_by_definition(rest, &text[1..]),
        [character, rest @ ..] => text.first() == Some(character) && matches_by_definition(rest, &text[1..]),
    }
}

proptest! {
    #[test]
    fn a_glob_matches_what_its_definition_says(pattern in "[abé*?]{0,8}", text in "[abé]{0,8}") {
        let characters = |text: &str| text.chars().collect::<Vec<_>>();
        let wanted = matches_by_definition(&characters(&pattern), &characters(&text));
        prop_assert_eq!(Glob::parse(&pattern).matches(&text), wanted);
    }

    #[test]
    fn an_escaped_text_matches_itself_alone(text in "[ab*?\\\\]{0,6}", other in "[ab*?\\\\]{0,6}") {
        let escaped: String = text.chars().flat_map(|character| ['\\', character]).collect();
        prop_assert!(Glob::parse(&escaped).matches(&text));
        prop_assert_eq!(Glob::parse(&escaped).matches(&other), text == other);
    }

    #[test]
    fn any_text_and_pattern_are_taken(pattern in ".*", text in ".*") {
        std::hint::black_box(Glob::parse(&pattern).matches(&text));
    }
}

#[test]
fn a_pattern_of_many_stars_takes_no_longer_than_its_length_times_the_texts() {
    let pattern = Glob::parse(&("*a".repeat(500) + "b"));
    // Tried in all ways, this would outlast the universe.
    assert!(!pattern.matches(&"a".repeat(1000)));
}

fn selection(include: &[&str], exclude: &[&str]) -> Selection {
    let selectors = |texts: &[&str]| texts.iter().map(|text| crate::config::selector(text).unwrap()).collect();
    Selection { include: selectors(include), exclude: selectors(exclude) }
}

fn includes(selector: &str, container: &Container) -> bool {
    selection(&[selector], &[]).wants(container)
}

fn pair(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

fn web() -> Container {
    Container {
        name: Some("web-1".to_owned()),
        image: Some(Image {
            name: "nginx".to_owned(),
            tags: vec!["1.27".to_owned(), "stable".to_owned()],
            ..Image::default()
        }),
        matched: vec![pair(COMPOSE_PROJECT, "shop"), pair("tier", "front"), pair("empty", "")],
        ..Container::of_id("0123abcd".repeat(8), "docker")
    }
}

fn dns() -> Container {
    let pod = Pod { name: Some("dns-7".to_owned()), namespace: Some("kube-system".to_owned()), ..Pod::default() };
    let image = Image { name: "docker.io/library/dns".to_owned(), ..Image::default() };
    let namespace = Some("k8s.io".to_owned());
    Container { pod, namespace, image: Some(image), ..Container::of_id("f".repeat(64), "containerd") }
}

#[test]
fn a_condition_holds_for_what_it_names() {
    let (web, dns) = (web(), dns());
    let cases = [
        ("name:web-1", true, false),
        ("name:web", false, false),
        ("name:web-?", true, false),
        ("name:*", true, false),
        ("image:nginx", true, false),
        ("image:ngin", false, false),
        ("image:nginx:1.27", true, false),
        ("image:nginx:s*", true, false),
        ("image:nginx:1.2", false, false),
        ("image:*7", false, false),
        ("image:dns", false, true),
        ("image:docker.io/library/dns", false, true),
        ("image:dns:*", false, false),
        ("label:tier", true, false),
        ("label:tier=fr*", true, false),
        ("label:tier=", false, false),
        ("label:empty=", true, false),
        ("label:empty=*", true, false),
        ("label:other", false, false),
        ("compose:shop", true, false),
        ("compose:s", false, false),
        ("namespace:kube-*", false, true),
        ("namespace:k8s.io", false, true),
        ("pod:dns-*", false, true),
        ("id:0123abcd0", true, false),
        ("id:f", false, true),
        ("id:23", false, false),
        ("runtime:docker", true, false),
        ("runtime:containerd", false, true),
        ("name:web-*,label:tier=front", true, false),
        ("name:web-*,label:tier=back", false, false),
    ];
    for (selector, is_web, is_dns) in cases {
        assert_eq!((includes(selector, &web), includes(selector, &dns)), (is_web, is_dns), "{selector}");
    }
}

#[test]
fn a_registry_s_port_is_no_tag() {
    let image = Image { name: "localhost:5000/app".to_owned(), tags: vec!["2".to_owned()], ..Image::default() };
    let app = Container { image: Some(image), ..Container::of_id("0".repeat(64), "docker") };
    for selector in ["image:localhost:5000/app", "image:localhost:5*", "image:localhost:5000/app:2", "image:*/app"] {
        assert!(includes(selector, &app), "{selector}");
    }
    assert!(!includes("image:localhost:5000/app:3", &app));
}

#[test]
fn a_container_is_wanted_if_it_is_included_and_not_excluded() {
    const YES: &str = "name:web-1";
    const NO: &str = "name:other";
    let cases: [(&[&str], &[&str], bool); 10] = [
        (&[], &[], true),
        (&[YES], &[], true),
        (&[NO], &[], false),
        (&[NO, YES], &[], true),
        (&[], &[YES], false),
        (&[], &[NO], true),
        (&[], &[NO, YES], false),
        (&[YES], &[YES], false),
        (&[YES], &[NO], true),
        (&[NO], &[NO], false),
    ];
    for (include, exclude, wanted) in cases {
        assert_eq!(selection(include, exclude).wants(&web()), wanted, "{include:?} {exclude:?}");
    }
}

#[test]
fn a_container_that_nobody_has_described_is_neither_included_nor_excluded_by_what_it_might_be() {
    let unknown = Container::of_id("a".repeat(64), "containerd");
    for selector in ["name:*", "image:*", "label:tier", "compose:*", "namespace:*", "pod:*", "id:a,name:*"] {
        assert!(!selection(&[selector], &[]).wants(&unknown), "{selector}");
        assert!(selection(&[], &[selector]).wants(&unknown), "{selector}");
        assert!(selection(&[selector], &[]).needs_description(), "{selector}");
    }
    for selector in ["id:a", "runtime:containerd", "id:aa,runtime:containerd"] {
        assert!(selection(&[selector], &[]).wants(&unknown), "{selector}");
        assert!(!selection(&[], &[selector]).wants(&unknown), "{selector}");
        assert!(!selection(&[selector], &[]).needs_description(), "{selector}");
    }
}

#[test]
fn labels_that_are_asked_for_are_named() {
    let selection = selection(&["label:a=x,compose:p"], &["name:n,label:b"]);
    assert_eq!(selection.label_keys().collect::<Vec<_>>(), ["a", COMPOSE_PROJECT, "b"]);
    assert!(!selection.is_empty() && Selection::default().is_empty());
    assert_eq!(Selection::default().label_keys().count(), 0);
}
