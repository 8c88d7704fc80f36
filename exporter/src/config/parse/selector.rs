//! Which containers: `name:web-*,label:tier=front`.

use super::{Expected, expected};
use crate::enrich::selection::{COMPOSE_PROJECT, Condition, Glob, Selector};

/// Conditions, joined by `,`.
pub(in crate::config) fn selector(text: &str) -> Result<Selector, Expected> {
    text.split(plain(',')).map(condition).collect::<Result<_, _>>().map(Selector)
}

fn condition(text: &str) -> Result<Condition, Expected> {
    let (kind, value) = text.split_once(':').unwrap_or((text, ""));
    match kind.trim_start() {
        "name" => Ok(Condition::Name(glob(value, "name: and the name of a container")?)),
        "image" => {
            Ok(Condition::Image { pattern: glob(value, "image: and the name of an image")?, tagged: is_tagged(value) })
        }
        "label" => label(value),
        "compose" => {
            let project = glob(value, "compose: and the name of a Compose project")?;
            Ok(Condition::Label { key: COMPOSE_PROJECT.to_owned(), value: Some(project) })
        }
        "namespace" => Ok(Condition::Namespace(glob(value, "namespace: and the name of a namespace")?)),
        "pod" => Ok(Condition::Pod(glob(value, "pod: and the name of a pod")?)),
        "id" => Ok(Condition::Id(literal(value, "id: and the beginning of a container's id")?)),
        "runtime" => Ok(Condition::Runtime(literal(value, "runtime: and the name of a runtime, such as docker")?)),
        _ => expected(
            "name:GLOB, image:GLOB, label:KEY, label:KEY=GLOB, compose:GLOB, namespace:GLOB, pod:GLOB, id:PREFIX or \
             runtime:NAME, or several of them joined by `,`",
        ),
    }
}

fn label(text: &str) -> Result<Condition, Expected> {
    let (key, value) = match text.split_once(plain('=')) {
        Some((key, value)) => (key, Some(Glob::parse(value))),
        None => (text, None),
    };
    Ok(Condition::Label { key: literal(key, "label: and the key of a label, which has no pattern")?, value })
}

/// Whether there is a colon that cannot be that of a registry's port.
fn is_tagged(image: &str) -> bool {
    image.rsplit('/').next().unwrap_or_default().contains(':')
}

fn glob(text: &str, what: &str) -> Result<Glob, Expected> {
    if text.trim().is_empty() { expected(what) } else { Ok(Glob::parse(text)) }
}

/// A text without patterns.
fn literal(text: &str, what: &str) -> Result<String, Expected> {
    if text.trim().is_empty() || text.contains(plain('*')) || text.contains(plain('?')) {
        return expected(what);
    }
    let mut characters = text.chars();
    Ok(std::iter::from_fn(|| match characters.next() {
        Some('\\') => Some(characters.next().unwrap_or('\\')),
        character => character,
    })
    .collect())
}

/// Finds a character where no `\` stands before it. Has to be asked for each character from the first on.
fn plain(wanted: char) -> impl FnMut(char) -> bool {
    let mut escaped = false;
    move |character| {
        let found = character == wanted && !escaped;
        escaped = character == '\\' && !escaped;
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Vec<Condition> {
        selector(text).unwrap().0
    }

    fn label(key: &str, value: Option<&str>) -> Condition {
        Condition::Label { key: key.to_owned(), value: value.map(Glob::parse) }
    }

    #[test]
    fn a_selector_is_one_condition_or_several() {
        let image = |pattern, tagged| Condition::Image { pattern: Glob::parse(pattern), tagged };
        let cases = [
            ("name:web-*", vec![Condition::Name(Glob::parse("web-*"))]),
            ("image:nginx", vec![image("nginx", false)]),
            ("image:nginx:1.*", vec![image("nginx:1.*", true)]),
            ("image:localhost:5000/a", vec![image("localhost:5000/a", false)]),
            ("label:tier", vec![label("tier", None)]),
            ("label:tier=", vec![label("tier", Some(""))]),
            ("label:tier=a=b", vec![label("tier", Some("a=b"))]),
            ("compose:shop", vec![label(COMPOSE_PROJECT, Some("shop"))]),
            (
                "namespace:kube-*, pod:dns?",
                vec![Condition::Namespace(Glob::parse("kube-*")), Condition::Pod(Glob::parse("dns?"))],
            ),
            ("id:0123,runtime:cri-o", vec![Condition::Id("0123".to_owned()), Condition::Runtime("cri-o".to_owned())]),
        ];
        for (text, conditions) in cases {
            assert_eq!(parsed(text), conditions, "{text}");
        }
    }

    #[test]
    fn a_backslash_takes_what_follows_as_it_is() {
        assert_eq!(
            parsed(r"label:a\=b\,c=d\,\*,label:\\=\\"),
            [label("a=b,c", Some(r"d,\*")), label(r"\", Some(r"\\"))]
        );
        assert_eq!(parsed(r"name:a\"), [Condition::Name(Glob::parse(r"a\\"))]);
    }

    #[test]
    fn what_selects_nothing_is_refused() {
        let cases = [
            ("", "name:GLOB"),
            ("web", "name:GLOB"),
            ("Name:web", "name:GLOB"),
            ("name:web,", "joined by `,`"),
            ("name:", "name: and the name"),
            ("label:=x", "label: and the key"),
            ("label:com.*=x", "which has no pattern"),
            ("id:12*", "id: and the beginning"),
            ("runtime: ", "runtime: and"),
        ];
        for (text, phrase) in cases {
            let Err(Expected(found)) = selector(text) else { panic!("{text} must be refused") };
            assert!(found.contains(phrase), "{text}: {found}");
        }
    }

    proptest! {
        #[test]
        fn any_text_can_be_selected_by_escaping_it(key in "..*", value in ".*") {
            let escaped = |text: &str| text.chars().flat_map(|character| ['\\', character]).collect::<String>();
            prop_assume!(!key.trim().is_empty());
            let conditions = parsed(&format!("label:{}={},id:1", escaped(&key), escaped(&value)));
            prop_assert_eq!(conditions, [label(&key, Some(&escaped(&value))), Condition::Id("1".to_owned())]);
        }

        #[test]
        fn a_selector_is_read_as_it_was_printed(text in "(name|image|label|id|pod|:|,|=|\\\\|\\*|\\[|\\]|.){0,12}", value in ".*") {
            for text in [text, format!("label:a={value},image:{value}")] {
                let Ok(found) = selector(&text) else { continue };
                prop_assert_eq!(selector(&found.to_string()), Ok(found));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(name|image|label|id|:|,|=|\\\\|\\*|.){0,12}") {
            drop(selector(&text));
        }
    }
}
