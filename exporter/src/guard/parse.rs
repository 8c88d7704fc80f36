//! What a user writes in a policy comes in; its parts go out, or a phrase that completes "this is not …".

use super::spec::{Action, Origin, TEXT_MAX, Text};
use namespan_ebpf::guard_wire::dimension;

/// A text of one of [`dimension`], or what it begins with if it ends with `*`.
pub fn text(dimension: usize, text: &str) -> Result<Text, String> {
    let (bare, is_prefix) = match text.strip_suffix('*') {
        Some(prefix) => (prefix, true),
        None => (text, false),
    };
    if bare.contains(char::is_control) || bare.len() > TEXT_MAX {
        return Err(format!("{}: at most {TEXT_MAX} bytes, without control characters", expected(dimension)));
    }
    if bare.is_empty() && !is_prefix {
        return Err(format!("{}: it is empty; * alone is any", expected(dimension)));
    }
    let is_path = matches!(dimension, dimension::PATH | dimension::PARENT);
    if is_path && !bare.starts_with('/') && !bare.is_empty() {
        return Err(format!("{}: what is compared is absolute, after the kernel resolved it", expected(dimension)));
    }
    // Of a prefix the last component goes on.
    let mut whole = bare.split('/').rev().skip(usize::from(is_prefix));
    if is_path && (bare.contains("//") || whole.any(|part| matches!(part, "." | ".."))) {
        return Err(format!("{}: the kernel has resolved `.`, `..` and `//` before", expected(dimension)));
    }
    if !is_path && bare.contains('/') {
        return Err(format!("{}: the last component alone is compared, which has no `/`", expected(dimension)));
    }
    if dimension == dimension::ARGV0 && bare.starts_with('-') {
        return Err(format!("{}: the `-` of a login shell is taken away before", expected(dimension)));
    }
    if bare.contains('*') {
        return Err(format!("{}: `*` stands at the end alone, where it takes any rest", expected(dimension)));
    }
    Ok(Text { text: bare.to_owned(), is_prefix })
}

fn expected(dimension: usize) -> &'static str {
    match dimension {
        dimension::PATH => "an executable's absolute path such as /usr/bin/bash, or a prefix such as /tmp/*",
        dimension::NAME => "an executable's name such as bash, or a prefix such as python*",
        dimension::PARENT => "the absolute path of the parent's executable such as /usr/sbin/nginx, or a prefix",
        dimension::ARGV0 => "the name in argv[0] such as sh, or a prefix such as ba*",
        _ => "the name in argv[1] such as sh, or a prefix such as ba*",
    }
}

pub fn action(text: &str) -> Result<Action, String> {
    one_of(text, &[Action::Observe, Action::Kill, Action::Deny].map(|action| (action.name(), action)))
}

pub fn origin(text: &str) -> Result<Origin, String> {
    one_of(text, &Origin::ALL.map(|origin| (origin.name(), origin)))
}

fn one_of<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let names = || choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let found = choices.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| format!("one of {}", names()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_is_whole_or_a_prefix() {
        let read = |at, from: &str| text(at, from).unwrap();
        assert_eq!(read(dimension::PATH, "/bin/sh"), Text { text: "/bin/sh".to_owned(), is_prefix: false });
        assert_eq!(read(dimension::PATH, "/tmp/*"), Text { text: "/tmp/".to_owned(), is_prefix: true });
        assert_eq!(read(dimension::PATH, "/tmp/.*"), Text { text: "/tmp/.".to_owned(), is_prefix: true });
        assert_eq!(read(dimension::NAME, "*"), Text { text: String::new(), is_prefix: true });
        assert_eq!(read(dimension::ARGV1, "-c"), Text { text: "-c".to_owned(), is_prefix: false });
    }

    #[test]
    fn what_could_never_match_is_refused_with_the_reason() {
        let long = format!("/{}", "x".repeat(TEXT_MAX));
        let cases = [
            (dimension::PATH, "bin/sh", "absolute"),
            (dimension::PATH, "/bin/../sh", "resolved"),
            (dimension::PATH, "/bin//sh", "resolved"),
            (dimension::PATH, "", "empty"),
            (dimension::PATH, "/b\0n", "control"),
            (dimension::PATH, &long, "bytes"),
            (dimension::PATH, "/*/sh", "at the end"),
            (dimension::PARENT, "nginx", "absolute"),
            (dimension::NAME, "/bin/sh", "last component"),
            (dimension::ARGV0, "-bash", "login shell"),
            (dimension::ARGV1, "a/b", "last component"),
        ];
        for (at, from, phrase) in cases {
            let refusal = text(at, from).expect_err(from);
            assert!(refusal.contains(phrase), "{from}: {refusal}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(at in 0..dimension::COUNT, from in "(/|\\*|\\.|-|.){0,12}") {
            drop(text(at, &from));
        }
    }
}
