//! Policies and what would be decided come in; plain sentences go out.

use std::fmt::{self, Write as _};

use namespan_ebpf::guard_wire::{action, dimension, hook};

use super::compile::Compiled;
use super::evaluate::{Attempt, Masks, Outcome, masks};
use super::spec::{Action, Budget, Containers, Guard, Mode, Origin, Policy, Rule, Scope, Text};

/// What a policy would do, where it is enforced.
#[must_use]
pub fn policy(policy: &Policy) -> String {
    let mut told = format!("{} {}", does(policy.action), Concerned(&policy.scope));
    for (index, rule) in policy.rules.iter().enumerate() {
        let _infallible = write!(told, "\n  {} {rule}", if index == 0 { "if" } else { "or if" });
    }
    for rule in &policy.exceptions {
        let _infallible = write!(told, "\n  unless {rule}");
    }
    told
}

fn does(action: Action) -> &'static str {
    match action {
        Action::Observe => "tells of every program",
        Action::Kill => "kills, before its first instruction, every program",
        Action::Deny => "refuses with EPERM the exec of every program",
    }
}

struct Concerned<'a>(&'a Scope);

impl fmt::Display for Concerned<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let also = if self.0.host { " and on the host" } else { "" };
        match &self.0.containers {
            Containers::None => f.write_str("on the host, outside containers"),
            Containers::All => write!(f, "in every container, from its first exec on{also}"),
            Containers::Selected(selectors) => {
                f.write_str("in containers that are known to be ")?;
                for (index, selector) in selectors.iter().enumerate() {
                    write!(f, "{}{selector}", if index > 0 { " or " } else { "" })?;
                }
                f.write_str(also)
            }
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, condition) in conditions(self).iter().enumerate() {
            write!(f, "{}{condition}", if index > 0 { ", and " } else { "" })?;
        }
        Ok(())
    }
}

/// Each condition of a rule, as a phrase.
fn conditions(rule: &Rule) -> Vec<String> {
    let of_texts = [
        (&rule.path, "its path"),
        (&rule.name, "its name"),
        (&rule.parent, "its parent's executable"),
        (&rule.argv0, "the name in argv[0]"),
        (&rule.argv1, "the name in argv[1]"),
    ];
    let mut told: Vec<_> = of_texts
        .iter()
        .filter(|(texts, _)| !texts.is_empty())
        .map(|(texts, what)| format!("{what} {}", joined(texts.iter().map(one))))
        .collect();
    if !rule.uid.is_empty() {
        told.push(format!("its effective user id is {}", joined(rule.uid.iter().map(u32::to_string))));
    }
    told.extend(rule.interactive.map(|has| format!("it has {} controlling terminal", if has { "a" } else { "no" })));
    told.extend(rule.script.map(|is| {
        let told = if is { "it runs as the interpreter of a script" } else { "it was asked for itself" };
        told.to_owned()
    }));
    if !rule.origin.is_empty() {
        told.push(joined(rule.origin.iter().map(|origin| from(*origin).to_owned())));
    }
    told
}

fn one(Text { text, is_prefix }: &Text) -> String {
    match (is_prefix, text.is_empty()) {
        (false, _) => format!("is {text}"),
        (true, false) => format!("begins with {text}"),
        (true, true) => "is any".to_owned(),
    }
}

/// Of what they have in common at their beginning, the first alone has it.
fn joined(mut parts: impl Iterator<Item = String>) -> String {
    let mut told = parts.next().unwrap_or_default();
    let common = if told.starts_with("is ") { "is " } else { "" };
    for part in parts {
        let _infallible = write!(told, " or {}", part.strip_prefix(common).unwrap_or(&part));
    }
    told
}

fn from(origin: Origin) -> &'static str {
    match origin {
        Origin::Image => "it is of the image",
        Origin::Changed => "it was written or changed since the container was made",
        Origin::Mounted => "it is of another file system than the container's own",
        Origin::Memfd => "it is a memfd",
        Origin::Deleted => "it has no name any more",
        Origin::Unknown => "where it comes from cannot be told",
    }
}

/// What holds for all policies of the settings.
#[must_use]
pub fn guard(guard: &Guard) -> Vec<String> {
    let mut told = vec![match guard.mode {
        Mode::Observe => "guard.mode is observe: nothing is stopped, what would be is told of".to_owned(),
        Mode::Enforce => "guard.mode is enforce".to_owned(),
    }];
    if guard.policies.iter().any(|policy| policy.action != Action::Observe) {
        told.push(match guard.budget {
            Some(Budget { kills, window }) => format!(
                "past {kills} kills of one policy in one container within {window:?}, it is disarmed there until \
                 policies are loaded anew"
            ),
            None => "there is no limit to the number of kills".to_owned(),
        });
    }
    told
}

/// Why it would be decided so.
#[derive(Clone, Debug)]
pub struct Answer {
    /// In the order in which the kernel asks.
    pub outcomes: Vec<Outcome>,
    /// The program would not run.
    pub is_stopped: bool,
    /// One sentence.
    pub told: String,
    /// Of each policy, in their order.
    pub policies: Vec<Why>,
}

/// What a policy says of an exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    pub policy: String,
    pub fires: bool,
    pub reason: String,
}

/// `scope`: of the process's container, or the host.
#[must_use]
pub fn answer(compiled: &Compiled, attempt: &Attempt, scope: u64) -> Answer {
    let outcomes = super::evaluate::evaluate(compiled, attempt, scope);
    let found = masks(compiled, attempt, scope);
    let policies = compiled.policies().iter().enumerate().map(|(index, policy)| why(compiled, index, policy, &found));
    let policies = policies.collect();
    let enforces = compiled.tables.settings.enforces != 0;
    let decided: Vec<_> = outcomes.iter().filter_map(|outcome| Some((outcome.hook, outcome.decided?))).collect();
    let strongest = decided.iter().max_by_key(|(_, (_, action))| *action);
    let is_stopped = enforces && strongest.is_some_and(|(_, (_, action))| *action != action::OBSERVE);
    let told = match strongest {
        None => "it runs: no policy fires".to_owned(),
        Some((_, (index, intended))) => {
            let name = compiled.policy(*index).map_or("", |policy| policy.name.as_str());
            let would = match *intended {
                action::OBSERVE => "it runs, and is told of",
                action::KILL if enforces => "it is killed by SIGKILL before its first instruction",
                action::KILL => "it runs, and is told of as one that would be killed",
                _ if enforces => "its exec is refused with EPERM",
                _ => "it runs, and is told of as one whose exec would be refused",
            };
            format!("{would}: {name}")
        }
    };
    Answer { outcomes, is_stopped, told, policies }
}

fn why(compiled: &Compiled, index: usize, policy: &Policy, found: &Masks) -> Why {
    let rules = found.rules();
    let (matching, excepted) = match (u16::try_from(index), compiled.tables.settings.policies.get(index)) {
        (Ok(index), Some(table)) => (compiled.rule(index, rules), rules & table.exceptions != 0),
        (Err(_), _) | (_, None) => (None, false),
    };
    let (fires, reason) = match matching {
        Some(rule) if excepted => {
            (false, format!("{rule} holds, but so does {}", compiled.exceptions(index, rules).join(" and ")))
        }
        Some(rule) => (true, format!("{rule} holds")),
        None => (false, failing(compiled, index, found)),
    };
    Why { policy: policy.name.clone(), fires, reason }
}

/// The first condition of each rule that does not hold.
fn failing(compiled: &Compiled, index: usize, found: &Masks) -> String {
    let Some(bits) = compiled.bits(index) else { return String::new() };
    if bits.rules.iter().all(|bit| found.scope & 1 << bit == 0) {
        return "it does not concern this container, or the host".to_owned();
    }
    let failed = bits.rules.iter().enumerate().map(|(rule, bit)| {
        let lacks = |mask: u64| mask & 1 << bit == 0;
        let text = |dimension: usize| found.texts.get(dimension).is_some_and(|mask| lacks(*mask));
        let conditions = [
            ("path", text(dimension::PATH)),
            ("name", text(dimension::NAME)),
            ("parent", text(dimension::PARENT)),
            ("argv0", text(dimension::ARGV0)),
            ("argv1", text(dimension::ARGV1)),
            ("uid", lacks(found.uid)),
            ("interactive", lacks(found.interactive)),
            ("script", lacks(found.script)),
            ("origin", lacks(found.origin)),
        ];
        let failed: Vec<_> = conditions.iter().filter(|(_, fails)| *fails).map(|(name, _)| *name).collect();
        format!("match[{rule}] does not hold: {}", failed.join(", "))
    });
    failed.collect::<Vec<_>>().join("; ")
}

/// By name, as records have it.
#[must_use]
pub fn hook_name(hook: u8) -> &'static str {
    if hook == hook::CHECK { "bprm_check_security" } else { "sched_process_exec" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::selector;

    #[test]
    fn a_policy_reads_as_sentences() {
        let text = |text: &str, is_prefix| Text { text: text.to_owned(), is_prefix };
        let rule = Rule { name: vec![text("sh", false), text("ba", true)], interactive: Some(true), ..Rule::default() };
        let shells = Policy {
            name: "no-shells".to_owned(),
            description: String::new(),
            severity: 17,
            action: Action::Kill,
            scope: Scope { containers: Containers::All, host: false },
            rules: vec![rule, Rule { origin: vec![Origin::Memfd, Origin::Changed], ..Rule::default() }],
            exceptions: vec![Rule { uid: vec![0, 7], ..Rule::default() }],
        };
        let told = "kills, before its first instruction, every program in every container, from its first exec on\n  \
                    if its name is sh or begins with ba, and it has a controlling terminal\n  \
                    or if it is a memfd or it was written or changed since the container was made\n  \
                    unless its effective user id is 0 or 7";
        assert_eq!(policy(&shells), told);
        let selected = Containers::Selected(vec![selector("name:web-*").unwrap(), selector("id:1").unwrap()]);
        let scope = Scope { containers: selected, host: true };
        let told = policy(&Policy { scope, action: Action::Deny, exceptions: Vec::new(), ..shells });
        let start = "refuses with EPERM the exec of every program in containers that are known to be name:web-* or id:1 \
                     and on the host\n";
        assert!(told.starts_with(start), "{told}");
    }
}
