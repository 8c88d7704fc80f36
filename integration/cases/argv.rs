//! What programs are started with: kept as it is or cut and told so, printed harmlessly, and without its secrets.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt as _;
use std::process::{Command, Stdio};

use namespan_integration::attribute::{Value, has};
use namespan_integration::namespan::{shipped, table};
use namespan_integration::needs::{Need, met};
use namespan_integration::program::{Program, count, exec_of, ran};

const INVALID_UTF8: &[u8] = b"\xff\xfe\x80caf\xc3";

#[test]
fn an_exec_without_arguments_has_the_one_that_the_kernel_makes_up() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let mut pid = 0;
    let records = shipped(&["--args", "full"], || {
        pid = ran(Command::new(env!("CARGO_BIN_EXE_nstest-execve")).arg(&program.path).stderr(Stdio::null())).pid;
    });
    let ours = program.of(&records);
    // Since Linux 5.18 there is always argv[0], if need be an empty one.
    has(
        &exec_of(&ours, pid).attributes,
        "exec",
        &[
            ("process.args_count", 1.into()),
            ("process.command_args", [""].into()),
            ("process.command", "".into()),
            ("namespan.process.start_type", "reexec".into()),
        ],
    );
    assert_eq!(count(ours.iter().copied()), (1, 1));
}

#[test]
fn one_argument_and_five_thousand_and_empty_ones_are_kept_as_they_are() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let many: Vec<_> = (0..5000).map(|number| number.to_string()).collect();
    let (mut one, mut five_thousand, mut empty) = (0, 0, 0);
    let records = shipped(&[], || {
        one = program.run("true", [""; 0]).pid;
        five_thousand = program.run("true", &many).pid;
        empty = program.run("true", ["", "", "x", ""]).pid;
    });
    let ours = program.of(&records);
    let arguments = |pid| {
        let exec = exec_of(&ours, pid);
        assert_eq!(*exec.get("namespan.process.args.truncated"), Value::Empty);
        let arguments: Vec<_> = exec.get("process.command_args").list().iter().map(Value::text).collect();
        assert_eq!(exec.get("process.args_count").int(), i64::try_from(arguments.len()).unwrap());
        arguments
    };
    assert_eq!(arguments(one), ["true"]);
    assert_eq!(arguments(empty), ["true", "", "", "x", ""]);
    let expected: Vec<_> = std::iter::once("true").chain(many.iter().map(String::as_str)).collect();
    assert_eq!(arguments(five_thousand), expected);
}

#[test]
fn of_200_kib_of_arguments_head_and_tail_are_kept_and_their_true_size_is_told() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    // With its NUL each is a KiB.
    let long: Vec<_> = (0..200).map(|number| format!("{number:04}{}", "x".repeat(1019))).collect();
    // What is next to the gap may be the rest of a secret, and is redacted.
    for (mode, least) in [("full", (32 << 10) - 2), ("redacted", 30 << 10)] {
        let mut pid = 0;
        let records = shipped(&["--args", mode], || pid = program.run("true", &long).pid);
        let ours = program.of(&records);
        let exec = exec_of(&ours, pid);
        has(
            &exec.attributes,
            "exec",
            &[
                ("process.args_count", 201.into()),
                ("namespan.process.args.truncated", true.into()),
                ("namespan.process.args.length", (200 * 1024 + 5).into()),
            ],
        );
        let kept: Vec<_> = exec.get("process.command_args").list().iter().map(Value::text).collect();
        let bytes: usize = kept.iter().map(|argument| argument.len() + 1).sum();
        assert!((least..=(32 << 10) + 2).contains(&bytes), "{bytes} bytes kept, {mode}");
        assert_eq!(kept[0], "true");
        assert!(kept[1..].iter().zip(&long).take(14).all(|(kept, given)| kept == given), "the head");
        assert!(kept.iter().rev().zip(long.iter().rev()).take(14).all(|(kept, given)| kept == given), "the tail");
    }
}

#[test]
fn terminal_escapes_survive_as_data_and_are_printed_escaped() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let escapes = ["\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\rb\nc\td\x7f", "\u{9b}1m", "\u{202e}drowssap"];
    let mut pid = 0;
    let records = shipped(&[], || pid = program.run("true", escapes).pid);
    let ours = program.of(&records);
    let exec = exec_of(&ours, pid);
    let arguments: Vec<_> = exec.get("process.command_args").list().iter().map(Value::text).collect();
    assert_eq!(arguments[1..], escapes);
    let harmless = |text: &str| !text.contains(|c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c));
    assert!(harmless(exec.body.text()), "{:?}", exec.body);

    let invalid = OsString::from_vec(INVALID_UTF8.to_vec());
    let printed = table(&["--comm", &program.name], || {
        program.run("true", escapes.map(OsStr::new).into_iter().chain([invalid.as_os_str()]));
    });
    assert!(printed.lines().all(harmless), "{printed:?}");
    assert!(printed.contains(r"\u{1b}[31mred"), "{printed}");
    assert!(printed.contains(r"\xff\xfe\x80caf\xc3"), "{printed}");
}

#[test]
fn secrets_are_redacted_unless_all_is_wanted_and_nothing_is_sent_if_nothing_is() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let given = [
        "--password",
        "hunter2",
        "--api-token=hunter2",
        "DB_PASSWORD=hunter2",
        "https://me:hunter2@example.com/x?sig=hunter2&y=1",
        "plain",
    ];
    let exec_with = |mode: &[&str]| {
        let mut pid = 0;
        let records = shipped(mode, || pid = program.run("true", given).pid);
        exec_of(&program.of(&records), pid).clone()
    };

    let exec = exec_with(&[]);
    assert!(!format!("{exec:?}").contains("hunter2"), "{exec:?}");
    has(
        &exec.attributes,
        "redacted exec",
        &[
            ("namespan.process.args.redacted", true.into()),
            ("process.args_count", 7.into()),
            (
                "process.command_args",
                [
                    "true",
                    "--password",
                    "REDACTED",
                    "--api-token=REDACTED",
                    "DB_PASSWORD=REDACTED",
                    "https://REDACTED:REDACTED@example.com/x?sig=REDACTED&y=1",
                    "plain",
                ]
                .into(),
            ),
        ],
    );

    let exec = exec_with(&["--args", "full"]);
    let arguments: Vec<_> = exec.get("process.command_args").list().iter().map(Value::text).collect();
    assert_eq!(arguments[1..], given);
    assert_eq!(*exec.get("namespan.process.args.redacted"), Value::Empty);

    let exec = exec_with(&["--args", "off"]);
    has(&exec.attributes, "exec", &[("process.args_count", 7.into()), ("process.command", "true".into())]);
    assert_eq!(*exec.get("process.command_args"), Value::Empty);
    let told = format!("{exec:?}");
    assert!(!told.contains("hunter2") && !told.contains("plain"), "{told}");

    for mode in ["redacted", "off"] {
        let printed = table(&["--args", mode, "--comm", &program.name], || {
            program.run("true", given);
        });
        assert!(printed.contains(&program.name) && !printed.contains("hunter2"), "{printed}");
    }
}

#[test]
fn what_is_left_of_a_cut_secret_is_redacted_too() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    // 32 bytes are kept at either end: the last ones are the end of the password.
    let given = ["x".repeat(40), format!("--password={}", "hunter2".repeat(10))];
    let mut pid = 0;
    let records = shipped(&["--args-limit", "64"], || pid = program.run("true", &given).pid);
    let exec = exec_of(&program.of(&records), pid).clone();
    assert_eq!(*exec.get("namespan.process.args.truncated"), true.into());
    assert!(!format!("{exec:?}").contains("hunter2"), "{exec:?}");

    let printed = table(&["--args-limit", "64", "--comm", &program.name], || {
        program.run("true", &given);
    });
    assert!(printed.contains(&program.name) && !printed.contains("hunter2"), "{printed}");
}
