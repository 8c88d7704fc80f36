//! Many blocked execs at once.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use namespan_integration::attribute::Value;
use namespan_integration::docker::{Docker, docker};
use namespan_integration::settings::Run;
use namespan_integration::sink::Sink;

use super::bypass::{TOOL, image};
use super::{STATUS, decisions, ready, ready_made, settings};

/// What the tool has counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ends {
    pub ran: u64,
    pub killed: u64,
    pub denied: u64,
    pub absent: u64,
    pub crowded: u64,
}

impl Ends {
    fn parse(text: &str) -> Self {
        let words: Vec<_> = text.split_whitespace().collect();
        let [_, ran, _, killed, _, denied, _, absent, _, crowded] = words[..] else { panic!("{text:?}") };
        let [ran, killed, denied, absent, crowded] =
            [ran, killed, denied, absent, crowded].map(|count| count.parse().unwrap());
        Self { ran, killed, denied, absent, crowded }
    }

    pub fn tried(&self) -> u64 {
        self.ran + self.killed + self.denied + self.absent + self.crowded
    }
}

/// The tool at work in a container.
pub struct Tool(Child);

impl Tool {
    pub fn start(container: &str, words: &[&str]) -> Self {
        let mut command = Command::new("docker");
        command
            .args(["exec", "--interactive", container, TOOL])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn is_over(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Its standard input ends, and it.
    pub fn end(self) -> Ends {
        let output = self.0.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Ends::parse(&String::from_utf8(output.stdout).unwrap())
    }
}

/// A container that has no more than so many processes and threads.
pub fn narrow(image: &Docker, suffix: &str) -> String {
    let name = image.name(suffix);
    let tagged = image.tagged();
    docker(&["run", "--detach", "--pids-limit", "64", "--name", &name, &tagged, "/bin/sleep", "1000000"]);
    name
}

#[test]
fn a_fork_bomb_of_shells_is_counted_to_the_last_and_holds_nobody_up() {
    const WORKERS: &str = "40";
    const EACH: &str = "50";
    const ALL: u64 = 2000;
    if !ready() {
        return;
    }
    let image = image();
    let sink = Sink::start();
    let name = narrow(&image, "bomb");
    let guard = format!("  budget: {{kills: none}}\n  files: ['{}']\n", ready_made("no-shells-in-containers"));
    let run = Run::start(&settings(&sink, "enforce", &guard));
    let mut bomb = Tool::start(&name, &["storm", WORKERS, EACH, "/bin/bash", "bash", "-c", "exit 7"]);
    let mut slowest = Duration::ZERO;
    let mut meanwhile = 0;
    while !bomb.is_over() {
        let start = Instant::now();
        assert_eq!(Command::new("/bin/sh").args(["-c", "exit 7"]).status().unwrap().code(), Some(7));
        slowest = slowest.max(start.elapsed());
        meanwhile += 1;
    }
    let ends = bomb.end();
    assert_eq!(ends, Ends { killed: ALL - ends.crowded, crowded: ends.crowded, ..Ends::default() });
    assert!(ends.killed > ALL / 2, "{ends:?}");
    assert!(meanwhile > 0 && slowest < Duration::from_secs(5), "{meanwhile} {slowest:?}");
    let finished = run.namespan.stop();
    let guard = finished.summary.guard.clone().unwrap();
    assert_eq!((guard.decided, guard.killed), (ends.killed, ends.killed), "{}", finished.stderr);
    assert_eq!(guard.told + guard.dropped, ends.killed, "{}", finished.stderr);
    let told = decisions(&sink, &name);
    assert_eq!(told.len() as u64, guard.told, "{}", finished.stderr);
    assert!(told.iter().all(|told| told.result == "killed" && told.path == "/bin/bash" && told.rule == "match[0]"));
    assert!(finished.status.success(), "{}", finished.stderr);
}

#[test]
fn past_its_budget_a_policy_is_disarmed_and_says_so_once() {
    const ALL: u64 = 100;
    const BUDGET: u64 = 20;
    if !ready() {
        return;
    }
    let image = image();
    let sink = Sink::start();
    let [bombed, other] = ["bombed", "other"].map(|suffix| narrow(&image, suffix));
    let files = format!("  files: ['{}']\n", ready_made("no-shells-in-containers"));
    let run = Run::start(&settings(&sink, "enforce", &files));
    let storm = |container: &str, count: u64| {
        Tool::start(container, &["storm", "1", &count.to_string(), "/bin/bash", "bash", "-c", "exit 7"]).end()
    };
    assert_eq!(storm(&bombed, ALL), Ends { killed: BUDGET, ran: ALL - BUDGET, ..Ends::default() });
    // Each container has a budget of its own.
    assert_eq!(storm(&other, BUDGET), Ends { killed: BUDGET, ..Ends::default() });
    let finished = run.namespan.stop().shipped_all();
    let guard = finished.summary.guard.unwrap();
    let counts = (guard.decided, guard.killed, guard.disarmed, guard.told, guard.dropped);
    assert_eq!(counts, (ALL + BUDGET, 2 * BUDGET, ALL - BUDGET, ALL + BUDGET, 0), "{}", finished.stderr);
    let results: Vec<_> = decisions(&sink, &bombed).into_iter().map(|told| told.result).collect();
    let wanted = [vec!["killed"; 20], vec!["disarmed"; 80]].concat();
    assert_eq!(results, wanted);
    assert!(decisions(&sink, &other).iter().all(|told| told.result == "killed"));
    let mut statuses = sink.records();
    statuses.retain(|record| *record.get(STATUS) == Value::from("disarmed"));
    let [status] = &statuses[..] else { panic!("{statuses:#?}") };
    assert_eq!(*status.get("security_rule.name"), Value::from("no-shells-in-containers"));
    assert_eq!(*status.get("container.name"), Value::from(bombed.as_str()));
}
