//! Probes of functions, in the file and on the command line.

use std::ffi::OsString;

use clap::Parser;

use super::file;
use crate::cli::{Cli, Command, Run};
use crate::config::{Config, ConfigError};
use crate::uprobe::spec::{Binary, Capture, Function, Kind, Rate, Target, Type, Uprobe};

const SAMPLE: &str = include_str!("../../../../../otel-config/namespan.yaml");

fn typed(words: &[&str]) -> Result<Config, ConfigError> {
    let words = ["namespan", "probe"].iter().chain(words);
    let Command::Probe(probe) = Cli::try_parse_from(words).unwrap().command else { panic!("probe expected") };
    Config::load(&Run::from(&*probe), &|_| None::<OsString>)
}

/// Of one probe in the file, with what every probe has.
fn listed(rest: &str) -> Result<Uprobe, String> {
    let text = format!("uprobes:\n  - name: p\n    binary: /bin/sh\n{rest}");
    let mut probes = file(&text).load().map_err(|error| error.to_string())?.uprobes;
    assert_eq!(probes.len(), 1);
    Ok(probes.remove(0))
}

fn selectors(texts: &[&str]) -> Target {
    Target::Containers(texts.iter().map(|text| crate::config::selector(text).unwrap()).collect())
}

#[test]
fn a_probe_of_the_file_has_what_it_says_and_defaults() {
    let least = listed("    host: true\n    function: readline\n").unwrap();
    let expected = Uprobe::new(
        "p".to_owned(),
        Target::Host,
        Binary::Path("/bin/sh".to_owned()),
        Function::Symbol("readline".to_owned()),
    );
    assert_eq!(least, expected);
    assert_eq!((least.max_string, least.sample, least.severity, least.span), (256, 1, 9, false));
    assert_eq!(least.rate, Some(Rate { per_second: 1000, burst: 1000 }));

    let most = listed(
        r#"    containers: ["name:web-*", "image:debian:*"]
    function: "ns::f(int)"
    kind: both
    args: [buf:bytes(1), "len:u64", at@5:pointer]
    returns: i32
    max_string: 64
    sample: 10
    rate: 50
    burst: 200
    severity: warn
    span: true
    redact: ['password=\S+', x]
"#,
    )
    .unwrap();
    let capture = |name: &str, position, value| Capture { name: name.to_owned(), position, value };
    assert_eq!(most.target, selectors(&["name:web-*", "image:debian:*"]));
    assert_eq!(most.function, Function::Symbol("ns::f(int)".to_owned()));
    assert_eq!(
        most.args,
        [capture("buf", 0, Type::Bytes { length: 1 }), capture("len", 1, Type::U64), capture("at", 5, Type::Pointer)]
    );
    assert_eq!(most.returns, Some(capture("ret", 0, Type::I32)));
    assert_eq!((most.kind, most.max_string, most.sample, most.severity, most.span), (Kind::Both, 64, 10, 13, true));
    assert_eq!(most.rate, Some(Rate { per_second: 50, burst: 200 }));
    assert_eq!(most.redact.iter().map(|regex| regex.as_str()).collect::<Vec<_>>(), [r"password=\S+", "x"]);
}

#[test]
fn the_kind_follows_from_what_is_captured() {
    let kind = |rest: &str| listed(&format!("    pid: 7\n    function: f\n{rest}")).map(|probe| probe.kind);
    assert_eq!(kind(""), Ok(Kind::Entry));
    assert_eq!(kind("    args: [a:u8]\n"), Ok(Kind::Entry));
    assert_eq!(kind("    returns: u8\n"), Ok(Kind::Return));
    assert_eq!(kind("    args: [a:u8]\n    returns: b:u8\n"), Ok(Kind::Both));
    assert_eq!(kind("    kind: both\n"), Ok(Kind::Both));
    assert_eq!(kind("    kind: return\n"), Ok(Kind::Return));
}

#[test]
fn what_makes_no_sense_is_refused_with_line_key_and_remedy() {
    let cases = [
        ("    function: f\n", "line 2: uprobes[0]: it has no target: it takes one of containers"),
        ("    host: false\n    function: f\n", "it has no target"),
        ("    host: true\n    pid: 7\n    function: f\n", "it has more than one target"),
        ("    containers: []\n    function: f\n", "its list of containers is empty"),
        ("    containers: [web]\n    function: f\n", "line 4: uprobes[0].containers: `web` is not name:GLOB"),
        ("    pid: 0\n    function: f\n", "line 4: uprobes[0].pid: `0` is not the id of a process"),
        ("    host: true\n", "uprobes[0]: it has no function"),
        ("    host: true\n    function: /a\n", "line 5: uprobes[0].function: `/a` is not a function: this regular"),
        ("    host: true\n    function: f\n    kind: exit\n", "line 6: uprobes[0].kind: `exit` is not one of entry"),
        (
            "    host: true\n    function: f\n    args: [a:int]\n",
            "uprobes[0].args: `a:int` is not an argument: a type is",
        ),
        ("    host: true\n    function: f\n    args: [a:int]\n", "i32 may be meant (character 3)"),
        (
            "    host: true\n    function: f\n    args:\n      - a:u8\n      - a:u8\n",
            "line 8: uprobes[0].args: `a` names another",
        ),
        ("    host: true\n    function: f\n    args: [a@6:u8]\n", "only arguments 0 to 5 are passed in registers"),
        ("    host: true\n    function: f\n    args: [a:f64]\n", "vector register"),
        ("    host: true\n    function: f\n    args: [a:bytes(0)]\n", "not its own"),
        ("    host: true\n    function: f\n    args: [a:u8]\n    kind: return\n", "at return the arguments are gone"),
        ("    host: true\n    function: f\n    returns: u8\n    kind: entry\n", "line 6: uprobes[0].returns: at entry"),
        ("    host: true\n    function: f\n    returns: bytes(1)\n", "those are gone at return"),
        ("    host: true\n    function: f\n    returns: f64\n", "*f64"),
        ("    host: true\n    function: f\n    span: true\n", "line 6: uprobes[0].span: a span lasts"),
        ("    host: true\n    function: usdt:a:b\n    kind: both\n", "line 6: uprobes[0].kind: a USDT marker"),
        ("    host: true\n    function: usdt:a:b\n    returns: u8\n", "line 6: uprobes[0].returns: a USDT marker"),
        ("    host: true\n    function: f+4\n    kind: return\n", "where it returns to"),
        (
            "    host: true\n    function: f\n    rate: none\n    burst: 1\n",
            "line 7: uprobes[0].burst: there is no rate",
        ),
        (
            "    host: true\n    function: f\n    redact: ['(']\n",
            "uprobes[0].redact: `(` is not a regular expression: unclosed",
        ),
        ("    host: true\n    function: f\n    severity: loud\n", "`loud` is not one of trace"),
        ("    host: true\n    function: f\n    sample: 0\n", "uprobes[0].sample: `0` is not one of how many"),
    ];
    for (rest, phrase) in cases {
        let message = listed(rest).unwrap_err();
        assert!(message.contains(phrase), "{phrase} in {message}");
    }
    for (text, phrase) in [
        ("uprobes:\n  - binary: /a\n", "line 2: uprobes[0]: it has no name"),
        ("uprobes:\n  - {name: a/b, binary: /a}\n", "line 2: uprobes[0].name: `a/b` is not a name of 1 to 64"),
        ("uprobes:\n  - {name: a, host: true}\n", "uprobes[0]: it has no binary"),
        ("uprobes:\n  - {name: a, host: true, binary: ./a}\n", "`./a` is not an absolute path such as"),
        (
            "uprobes:\n  - {name: a, host: true, binary: /a, function: f}\n  - {name: a, pid: 1, binary: b, function: g}\n",
            "line 3: uprobes[1].name: `a` names a probe above already",
        ),
    ] {
        let message = file(text).refusal();
        assert!(message.contains(phrase), "{phrase} in {message}");
    }
}

#[test]
fn operands_of_usdt_may_be_floats_and_many() {
    let probe = listed("    host: true\n    function: usdt:a:b\n    args: [a@11:f64, b@0:f32]\n").unwrap();
    assert_eq!(probe.args.iter().map(|capture| capture.position).collect::<Vec<_>>(), [11, 0]);
}

#[test]
fn there_are_at_most_256_probes() {
    let probe = |index: usize| format!("  - {{name: p{index}, host: true, binary: /a, function: f}}\n");
    let text = |count| "uprobes:\n".to_owned() + &(0..count).map(probe).collect::<String>();
    assert_eq!(file(&text(256)).load().unwrap().uprobes.len(), 256);
    assert!(file(&text(257)).refusal().contains("257 probes are too many: at most 256"));
}

#[test]
fn the_examples_of_the_sample_file_can_be_used() {
    let lines = SAMPLE.lines().skip_while(|line| *line != "#   uprobes:");
    let text = lines.map_while(|line| line.strip_prefix("#   ")).fold(String::new(), |text, line| text + line + "\n");
    assert!(file(&text).load().unwrap().uprobes.len() > 2);
}

#[test]
fn what_is_typed_replaces_the_probes_of_the_file() {
    let config = typed(&["web:/usr/bin/bash:readline -> ret:string", "pid=7:libc:readline"]).unwrap();
    assert!(config.uprobes_only);
    let [first, second] = config.uprobes.as_slice() else { panic!("two probes expected") };
    assert_eq!((first.name.as_str(), second.name.as_str()), ("readline", "readline-2"));
    assert_eq!((&first.target, &second.target), (&selectors(&["name:web"]), &Target::Pid(7)));

    let run = file("uprobes:\n  - {name: a, host: true, binary: /a, function: f}\n").load().unwrap();
    assert!(!run.uprobes_only);
    assert_eq!(run.uprobes.len(), 1);
}

#[test]
fn flags_are_of_all_probes() {
    let flags = ["--max-string", "9", "--sample", "3", "--rate", "5", "--redact", "a+", "--span"];
    let probe = ["--container", "name:a", "--container", "label:b", "libc:f() -> _", "/b:g() -> _"];
    let config = typed(&[&probe[..], &flags].concat()).unwrap();
    for probe in &config.uprobes {
        assert_eq!(probe.target, selectors(&["name:a", "label:b"]));
        assert_eq!((probe.max_string, probe.sample, probe.span), (9, 3, true));
        assert_eq!(probe.rate, Some(Rate { per_second: 5, burst: 5 }));
        assert_eq!(probe.redact.len(), 1);
    }
    assert_eq!(config.label_keys().collect::<Vec<_>>(), ["b", "b"]);
    assert_eq!(typed(&["/a:f", "--rate", "none"]).unwrap().uprobes[0].rate, None);
}

#[test]
fn what_is_typed_wrongly_is_shown() {
    let message = typed(&["web:/usr/bin/bash:readline -> ret:strin"]).unwrap_err().to_string();
    let lines: Vec<_> = message.lines().collect();
    assert!(lines[0].starts_with("a type is one of i8, "), "{message}");
    assert_eq!(lines[1], "  web:/usr/bin/bash:readline -> ret:strin");
    assert_eq!(lines[2], format!("  {:34}^", ""));
    for (words, phrase) in [
        (&["/a:f", "--span"][..], "--span takes probes of whole calls"),
        (&["web:/usr/bin/bash:f", "--container", "name:a"], "leave the target out of the probe"),
        (&["/a:f", "--container", "a"], "flag --container: `a` is not name:GLOB"),
        (&["/a:f", "--redact", "("], "flag --redact: `(` is not a regular expression: unclosed"),
        (&["/a:f", "--max-string", "5000"], "flag --max-string: `5000` is not a number of bytes from 1 to 4096"),
    ] {
        let message = typed(words).unwrap_err().to_string();
        assert!(message.contains(phrase), "{phrase} in {message}");
    }
}
