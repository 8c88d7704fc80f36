//! What the guard can guarantee here: each action is tried on a child of ours.

use super::privilege::Privileges;
use super::report::Check;
use crate::attach::refusal::chain;
use crate::guard::compile::Compiled;
use crate::guard::load::{Guard as Programs, GuardError, Limits, lsm};
use crate::guard::place::sees_host;
use crate::guard::spec::{Action, Containers, Guard, Mode, Policy, Rule, Scope, Text, WithoutLsm};

const KILL: &str = "guard_kill";
const DENY: &str = "guard_deny";

pub(super) fn checks(guard: &Guard, privileges: &Privileges) -> [Check; 2] {
    if !privileges.may_load() {
        return [KILL, DENY].map(|name| {
            let check = Check::lacks(!guard.policies.is_empty(), name, "not tried: programs can't be loaded");
            check.means("there is no guard").remedy(privileges.remedy())
        });
    }
    [kill(guard), deny(guard)]
}

fn kill(guard: &Guard) -> Check {
    if !sees_host() {
        let is_required = !guard.policies.is_empty() && guard.mode == Mode::Enforce;
        let found = "not in the host's PID namespace: a runtime's set-up can't be told from a container's processes";
        return Check::lacks(is_required, KILL, found)
            .means("guard.mode: enforce is refused")
            .remedy("start Namespan's container with --pid=host (Kubernetes: hostPID: true)");
    }
    match prove() {
        Ok(()) => Check::ok(KILL, "a child of ours was killed before its first instruction"),
        Err(error) => Check::lacks(!guard.policies.is_empty(), KILL, chain(&error))
            .means("no policy can be enforced")
            .remedy("report it with the output of `check --json`"),
    }
}

fn deny(guard: &Guard) -> Check {
    let refusal = match lsm() {
        Ok(()) => return Check::ok(DENY, "the exec of a child of ours was refused with EPERM"),
        Err(refusal) => refusal,
    };
    let is_required = guard.denies() && guard.without_lsm == WithoutLsm::Refuse;
    let means = match guard.without_lsm {
        WithoutLsm::Refuse => "policies that deny are refused at the start, as guard.without_lsm says",
        WithoutLsm::Kill => "policies that deny kill instead, as guard.without_lsm says",
    };
    Check::lacks(is_required, DENY, refusal.to_string())
        .means(means)
        .remedy("use action kill, set guard.without_lsm: kill, or boot a kernel with bpf in its list of lsm=")
}

/// With a policy that kills, and nothing that it is for: the guard is loaded, and never goes to work.
fn prove() -> Result<(), GuardError> {
    let any = Rule { path: vec![Text { text: String::new(), is_prefix: true }], ..Rule::default() };
    let policy = Policy {
        name: String::new(),
        description: String::new(),
        severity: Action::Kill.severity(),
        action: Action::Kill,
        scope: Scope { containers: Containers::None, host: false },
        rules: vec![any],
        exceptions: Vec::new(),
    };
    let guard = Guard { policies: vec![policy], ..Guard::default() };
    // One rule of one policy always fits.
    let Ok(compiled) = Compiled::new(&guard, false) else { return Ok(()) };
    let (mut programs, _ring) = Programs::load(&compiled.tables, &Limits { ring_bytes: 4096, scopes: 1 })?;
    programs.self_test()
}
