//! A policy comes in; whether its parts go together, and can be matched where it acts, goes out. Each part for itself is
//! checked where it is read.

use super::spec::{Action, Containers, Policy};

/// What does not go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub part: Part,
    /// A sentence with the remedy.
    pub problem: String,
}

/// Where the remedy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Scope,
    Match,
    /// One of the rules, by its place.
    Rule(usize),
    Exception(usize),
}

/// The first conflict, if there is one.
pub fn check(policy: &Policy) -> Result<(), Conflict> {
    if policy.scope.containers == Containers::None && !policy.scope.host {
        return conflict(Part::Scope, "it concerns nobody: say containers: all, a list of selectors, or host: true");
    }
    if policy.rules.is_empty() {
        return conflict(Part::Match, "it matches nothing: give it rules, such as - name: [sh, bash]");
    }
    let rules = policy.rules.iter().enumerate().map(|(index, rule)| (Part::Rule(index), rule));
    let exceptions = policy.exceptions.iter().enumerate().map(|(index, rule)| (Part::Exception(index), rule));
    for (part, rule) in rules.chain(exceptions) {
        if rule.is_empty() {
            return conflict(part, "it has no condition: for every program write path: [\"*\"]");
        }
        if policy.action == Action::Deny && rule.asks_for_arguments() {
            return conflict(
                part,
                "argv0 and argv1 cannot be matched by a policy that denies: it decides before the arguments are the \
                 program's, while the caller can still change them; use action kill, or match the path or name",
            );
        }
    }
    Ok(())
}

fn conflict<T>(part: Part, problem: &str) -> Result<T, Conflict> {
    Err(Conflict { part, problem: problem.to_owned() })
}
