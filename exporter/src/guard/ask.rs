//! `namespan policy`: files of policies come in, what they would do goes out in words, or as JSON.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;
use thiserror::Error;

use super::compile::{CompileError, Compiled};
use super::decision;
use super::evaluate::Attempt;
use super::explain::{self, Answer, hook_name};
use super::spec::{Action, Guard, Mode, Origin, Policy};
use crate::check::report::Printable;
use crate::cli;
use crate::config::{self, ConfigError};
use crate::enrich::container::{Container, Image, Reference};

#[derive(Debug, Error)]
pub enum AskError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error("`{name}` names two policies of these files: give each a name of its own")]
    Twice { name: String },
    #[error("--exec and --parent take absolute paths: {path}")]
    Relative { path: String },
    #[error("--label takes KEY=VALUE: {label}")]
    Label { label: String },
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

#[derive(Serialize)]
struct Checked<'a> {
    policies: Vec<CheckedPolicy<'a>>,
    /// Of [`super::spec::RULES_MAX`].
    rules: usize,
}

#[derive(Serialize)]
struct CheckedPolicy<'a> {
    name: &'a str,
    description: &'a str,
    severity: u8,
    action: &'static str,
    told: String,
}

/// Prints what each policy would do.
pub fn check(flags: &cli::PolicyCheck, out: &mut dyn Write) -> Result<(), AskError> {
    let guard = read(&flags.files)?;
    Compiled::new(&guard, true)?;
    let policies = &guard.policies;
    let rules = policies.iter().map(|policy| policy.rules.len() + policy.exceptions.len()).sum();
    if flags.json {
        serde_json::to_writer(&mut *out, &Checked { policies: policies.iter().map(checked).collect(), rules })
            .map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    for policy in policies {
        writeln!(out, "{} (severity {})", policy.name, policy.severity)?;
        for line in policy.description.lines() {
            writeln!(out, "  # {}", Printable(line))?;
        }
        for line in explain::policy(policy).lines() {
            writeln!(out, "  {}", Printable(line))?;
        }
        writeln!(out)?;
    }
    writeln!(out, "{} policies, {rules} rules: valid", policies.len())?;
    out.flush()?;
    Ok(())
}

fn checked(policy: &Policy) -> CheckedPolicy<'_> {
    let Policy { name, description, severity, action, .. } = policy;
    CheckedPolicy { name, description, severity: *severity, action: action.name(), told: explain::policy(policy) }
}

#[derive(Serialize)]
struct Tested<'a> {
    stopped: bool,
    told: &'a str,
    decisions: Vec<TestedDecision<'a>>,
    policies: Vec<TestedPolicy<'a>>,
}

#[derive(Serialize)]
struct TestedDecision<'a> {
    hook: &'static str,
    policy: &'a str,
    intended: &'static str,
    rule: Option<String>,
}

#[derive(Serialize)]
struct TestedPolicy<'a> {
    policy: &'a str,
    fires: bool,
    reason: &'a str,
}

/// Prints what would happen, and why. `true`: the program would be stopped.
pub fn test(flags: &cli::PolicyTest, out: &mut dyn Write) -> Result<bool, AskError> {
    let guard = Guard { mode: Mode::Enforce, ..read(&flags.files)? };
    let compiled = Compiled::new(&guard, true)?;
    let attempt = attempt(flags)?;
    let settings = &compiled.tables.settings;
    let scope = match container(flags)? {
        Some(container) => compiled.scope(&container).rules,
        None if flags.unknown_container => settings.containers,
        None => settings.host,
    };
    let answer = explain::answer(&compiled, &attempt, scope);
    if flags.json {
        serde_json::to_writer(&mut *out, &told(&compiled, &answer)).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}", answer.told)?;
        for why in &answer.policies {
            let fires = if why.fires { "fires" } else { "does not fire" };
            writeln!(out, "  {} {fires}: {}", why.policy, why.reason)?;
        }
    }
    out.flush()?;
    Ok(answer.is_stopped)
}

fn told<'a>(compiled: &'a Compiled, answer: &'a Answer) -> Tested<'a> {
    let decision = |outcome: &super::evaluate::Outcome| {
        let (index, action) = outcome.decided?;
        Some(TestedDecision {
            hook: hook_name(outcome.hook),
            policy: compiled.policy(index)?.name.as_str(),
            intended: decision::action(action).map_or("", Action::name),
            rule: compiled.rule(index, outcome.rules),
        })
    };
    let policies = answer.policies.iter();
    Tested {
        stopped: answer.is_stopped,
        told: &answer.told,
        decisions: answer.outcomes.iter().filter_map(decision).collect(),
        policies: policies
            .map(|why| TestedPolicy { policy: &why.policy, fires: why.fires, reason: &why.reason })
            .collect(),
    }
}

fn read(files: &[PathBuf]) -> Result<Guard, AskError> {
    let mut policies: Vec<Policy> = Vec::new();
    for path in files {
        for policy in config::policies(path)?.0 {
            if policies.iter().any(|known| known.name == policy.name) {
                return Err(AskError::Twice { name: policy.name });
            }
            policies.push(policy);
        }
    }
    Ok(Guard { policies, ..Guard::default() })
}

fn attempt(flags: &cli::PolicyTest) -> Result<Attempt, AskError> {
    for path in std::iter::once(&flags.exec).chain(&flags.parent) {
        if !path.starts_with('/') {
            return Err(AskError::Relative { path: path.clone() });
        }
    }
    let bytes = |text: Option<&String>| text.map(|text| text.clone().into_bytes()).unwrap_or_default();
    let origin = Origin::ALL.into_iter().find(|origin| flags.origin.as_deref() == Some(origin.name()));
    Ok(Attempt {
        path: flags.exec.clone().into_bytes(),
        argv0: bytes(flags.argv0.as_ref().or(Some(&flags.exec))),
        argv1: bytes(flags.argv1.as_ref()),
        parent: bytes(flags.parent.as_ref()),
        uid: flags.uid.unwrap_or(0),
        interactive: flags.interactive,
        script: flags.script,
        origin: origin.unwrap_or(Origin::Image),
    })
}

/// `None`: it is about the host, or an unknown container.
fn container(flags: &cli::PolicyTest) -> Result<Option<Container>, AskError> {
    let is_given = [&flags.container, &flags.image, &flags.namespace, &flags.pod].into_iter().any(Option::is_some);
    if !is_given && flags.labels.is_empty() {
        return Ok(None);
    }
    let label = |label: &String| match label.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(AskError::Label { label: label.clone() }),
    };
    let mut container = Container {
        name: flags.container.clone(),
        image: flags.image.as_deref().map(image),
        matched: flags.labels.iter().map(label).collect::<Result<_, _>>()?,
        namespace: flags.namespace.clone(),
        ..Container::of_id(String::new(), "")
    };
    container.pod.name.clone_from(&flags.pod);
    Ok(Some(container))
}

fn image(text: &str) -> Image {
    let reference = Reference::parse(text);
    Image {
        name: reference.name.to_owned(),
        tags: reference.tag.map(str::to_owned).into_iter().collect(),
        id: None,
        repo_digests: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHELLS: &str = "
policies:
- name: no-shells
  action: kill
  scope: {containers: ['name:web-*']}
  match:
  - name: [sh]
";

    fn ask(flags: &[&str]) -> (bool, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.yaml");
        std::fs::write(&path, SHELLS).unwrap();
        let words = ["namespan", "policy", "test", path.to_str().unwrap()];
        let parsed = <cli::Cli as clap::Parser>::try_parse_from(words.iter().chain(flags)).unwrap();
        let cli::Command::Policy(cli::Policy::Test(flags)) = parsed.command else { panic!("a test expected") };
        let mut out = Vec::new();
        let is_stopped = test(&flags, &mut out).unwrap();
        (is_stopped, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_test_says_what_would_happen_and_why() {
        let killed = "it is killed by SIGKILL before its first instruction: no-shells\n  \
                      no-shells fires: match[0] holds\n";
        assert_eq!(ask(&["--exec", "/bin/sh", "--container", "web-1"]), (true, killed.to_owned()));
        let runs = "it runs: no policy fires\n  no-shells does not fire: match[0] does not hold: name\n";
        assert_eq!(ask(&["--exec", "/bin/ls", "--container", "web-1"]), (false, runs.to_owned()));
        for place in [&["--container", "db"][..], &["--unknown-container"], &[]] {
            let (is_stopped, told) = ask(&[&["--exec", "/bin/sh"], place].concat());
            assert!(!is_stopped && told.contains("it does not concern this container"), "{told}");
        }
        let (_, json) = ask(&["--exec", "/bin/sh", "--container", "web-1", "--json"]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((json["stopped"].as_bool(), json["decisions"][0]["rule"].as_str()), (Some(true), Some("match[0]")));
    }
}
