//! What the tables decide is what the policies say, read word by word.

use namespan_ebpf::guard_wire::{POLICIES_MAX, RULES_MAX, TEXT_MAX};
use proptest::prelude::*;

use super::*;
use crate::config::selector;
use crate::enrich::container::Container;
use crate::guard::compile::CompileError;
use crate::guard::spec::{Action, Allow, Containers, Guard, Mode, Policy, Rule, Scope, Text};

fn texts(from: &[&str]) -> Vec<Text> {
    let text = |text: &&str| match text.strip_suffix('*') {
        Some(prefix) => Text { text: prefix.to_owned(), is_prefix: true },
        None => Text { text: (*text).to_owned(), is_prefix: false },
    };
    from.iter().map(text).collect()
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    Policy {
        name: name.to_owned(),
        description: String::new(),
        severity: action.severity(),
        action,
        scope: Scope { containers: Containers::All, host: false },
        rules,
        exceptions: Vec::new(),
    }
}

fn enforcing(policies: Vec<Policy>) -> Guard {
    Guard { mode: Mode::Enforce, policies, ..Guard::default() }
}

fn attempt(path: &str) -> Attempt {
    Attempt {
        path: path.as_bytes().to_vec(),
        argv0: path.as_bytes().to_vec(),
        argv1: Vec::new(),
        parent: b"/usr/bin/containerd-shim-runc-v2".to_vec(),
        uid: 0,
        interactive: false,
        script: false,
        origin: Origin::Image,
    }
}

fn container(name: &str) -> Container {
    Container { name: Some(name.to_owned()), ..Container::of_id("ab".repeat(32), "docker") }
}

fn decided(guard: &Guard, attempt: &Attempt) -> Vec<Option<(u16, u8)>> {
    let compiled = Compiled::new(guard, true).unwrap();
    let scope = compiled.tables.settings.containers;
    evaluate(&compiled, attempt, scope).iter().map(|outcome| outcome.decided).collect()
}

#[test]
fn a_name_is_the_last_component_and_a_prefix_takes_any_rest() {
    let shells = policy("s", Action::Kill, vec![Rule { name: texts(&["sh", "py*"]), ..Rule::default() }]);
    let guard = enforcing(vec![shells]);
    for (path, is_killed) in
        [("/bin/sh", true), ("/opt/sh", true), ("/bin/shx", false), ("/bin/python3", true), ("/sh/bin", false)]
    {
        let expected = is_killed.then_some((0, action::KILL));
        assert_eq!(decided(&guard, &attempt(path)), [None, expected], "{path}");
    }
}

#[test]
fn the_longest_entry_has_what_its_prefixes_have() {
    let rule = |paths: &[&str]| vec![Rule { path: texts(paths), ..Rule::default() }];
    let guard = enforcing(vec![
        policy("any", Action::Observe, rule(&["*"])),
        policy("tmp", Action::Kill, rule(&["/tmp/*"])),
        policy("one", Action::Observe, rule(&["/tmp/a"])),
    ]);
    let compiled = Compiled::new(&guard, true).unwrap();
    let fired = |path| {
        let outcomes = evaluate(&compiled, &attempt(path), compiled.tables.settings.containers);
        outcomes.last().unwrap().fired
    };
    assert_eq!([fired("/tmp/a"), fired("/tmp/ab"), fired("/tm")], [0b111, 0b011, 0b001]);
}

#[test]
fn the_strongest_action_decides_and_among_equals_the_first_policy() {
    let any = || vec![Rule { path: texts(&["*"]), ..Rule::default() }];
    let guard = enforcing(vec![
        policy("look", Action::Observe, any()),
        policy("first", Action::Kill, any()),
        policy("second", Action::Kill, any()),
    ]);
    assert_eq!(decided(&guard, &attempt("/x")), [None, Some((1, action::KILL))]);
    let guard = enforcing(vec![policy("k", Action::Kill, any()), policy("d", Action::Deny, any())]);
    // Who is refused has no image to be killed.
    assert_eq!(decided(&guard, &attempt("/x")), [Some((1, action::DENY))]);
    let guard = Guard { mode: Mode::Observe, ..guard };
    assert_eq!(decided(&guard, &attempt("/x")), [Some((1, action::DENY)), Some((0, action::KILL))]);
}

#[test]
fn without_lsm_what_denies_kills() {
    let any = vec![Rule { path: texts(&["*"]), ..Rule::default() }];
    let guard = enforcing(vec![policy("d", Action::Deny, any)]);
    let compiled = Compiled::new(&guard, false).unwrap();
    assert!(!compiled.tables.denies);
    let outcomes = evaluate(&compiled, &attempt("/x"), compiled.tables.settings.containers);
    assert_eq!(outcomes[1].decided, Some((0, action::KILL)));
}

#[test]
fn exceptions_and_allowed_executables_win() {
    let mut shells = policy("s", Action::Kill, vec![Rule { name: texts(&["sh"]), ..Rule::default() }]);
    shells.exceptions = vec![Rule { parent: texts(&["/usr/sbin/cron"]), uid: vec![0], ..Rule::default() }];
    let allow = Allow { executables: texts(&["/opt/*"]), containers: vec![selector("name:ci-*").unwrap()] };
    let guard = Guard { allow, ..enforcing(vec![shells]) };
    let of_cron = Attempt { parent: b"/usr/sbin/cron".to_vec(), ..attempt("/bin/sh") };
    assert_eq!(decided(&guard, &of_cron), [None, None]);
    assert_eq!(decided(&guard, &Attempt { uid: 7, ..of_cron }), [None, Some((0, action::KILL))]);
    assert_eq!(decided(&guard, &attempt("/opt/bin/sh")), [None, None]);
    let compiled = Compiled::new(&guard, true).unwrap();
    assert_eq!(compiled.scope(&container("ci-7")).rules, 0);
    assert_eq!(compiled.scope(&container("web")).rules, compiled.tables.settings.containers);
    assert_eq!(compiled.exceptions(0, u64::MAX), ["except[0]", "guard.allow.executables"]);
    assert_eq!(compiled.rule(0, 0b10).as_deref(), Some("match[0]"));
}

#[test]
fn a_selector_is_for_containers_that_are_known() {
    let mut web = policy("w", Action::Kill, vec![Rule { name: texts(&["sh"]), ..Rule::default() }]);
    web.scope = Scope { containers: Containers::Selected(vec![selector("name:web").unwrap()]), host: true };
    let compiled = Compiled::new(&enforcing(vec![web]), true).unwrap();
    let settings = &compiled.tables.settings;
    assert_eq!((settings.containers, settings.host), (0, 1));
    assert_eq!((compiled.scope(&container("web")).rules, compiled.scope(&container("db")).rules), (1, 0));
    assert!(compiled.selects());
}

#[test]
fn a_text_that_is_too_long_meets_prefixes_only() {
    let long = "n".repeat(TEXT_MAX);
    let guard = enforcing(vec![
        policy("whole", Action::Kill, vec![Rule { name: texts(&[&long]), ..Rule::default() }]),
        policy("prefix", Action::Observe, vec![Rule { name: texts(&["nn*"]), ..Rule::default() }]),
    ]);
    assert_eq!(decided(&guard, &attempt(&format!("/{long}")))[1], Some((0, action::KILL)));
    assert_eq!(decided(&guard, &attempt(&format!("/{long}n")))[1], Some((1, action::OBSERVE)));
}

#[test]
fn what_does_not_fit_is_refused_with_the_limit() {
    let rule = || Rule { name: texts(&["a"]), ..Rule::default() };
    let many = |policies: usize, rules: usize| {
        let policy = |index| policy(&format!("p{index}"), Action::Kill, (0..rules).map(|_| rule()).collect());
        Compiled::new(&enforcing((0..policies).map(policy).collect()), true).map(|_| ())
    };
    assert_eq!(many(POLICIES_MAX, RULES_MAX / POLICIES_MAX), Ok(()));
    assert_eq!(many(POLICIES_MAX + 1, 1), Err(CompileError::Policies { found: POLICIES_MAX + 1 }));
    assert_eq!(many(5, 13), Err(CompileError::Rules { found: 65 }));
}

// --- Read word by word --------------------------------------------------------------------------------------------------

fn says(text: &Text, found: &[u8]) -> bool {
    if text.is_prefix { found.starts_with(text.text.as_bytes()) } else { found == text.text.as_bytes() }
}

fn holds(rule: &Rule, of: &Attempt) -> bool {
    let any = |texts: &[Text], found: &[u8]| texts.is_empty() || texts.iter().any(|text| says(text, found));
    let last = |text: &[u8]| text.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
    let mut argv0 = last(&of.argv0);
    if argv0.first() == Some(&b'-') {
        argv0.remove(0);
    }
    any(&rule.path, &of.path)
        && any(&rule.name, &last(&of.path))
        && any(&rule.parent, &of.parent)
        && any(&rule.argv0, &argv0)
        && any(&rule.argv1, &last(&of.argv1))
        && (rule.uid.is_empty() || rule.uid.contains(&of.uid))
        && rule.interactive.is_none_or(|asked| asked == of.interactive)
        && rule.script.is_none_or(|asked| asked == of.script)
        && (rule.origin.is_empty() || rule.origin.contains(&of.origin))
}

/// Policies that fire for an exec in the container, or on the host.
fn fires(guard: &Guard, of: &Attempt, container: Option<&Container>) -> Vec<bool> {
    let is_allowed = guard.allow.executables.iter().any(|text| says(text, &of.path))
        || container.is_some_and(|of| guard.allow.containers.iter().any(|selector| selector.holds(of)));
    let is_concerned = |scope: &Scope| match container {
        Some(container) => scope.containers.concern(container),
        None => scope.host,
    };
    guard
        .policies
        .iter()
        .map(|policy| {
            !is_allowed
                && is_concerned(&policy.scope)
                && policy.rules.iter().any(|rule| holds(rule, of))
                && !policy.exceptions.iter().any(|rule| holds(rule, of))
        })
        .collect()
}

prop_compose! {
    /// From few letters, so that prefixes and texts meet.
    fn a_text(start: &'static str)(text in "[ab]{0,3}", is_prefix: bool) -> Text {
        let is_prefix = is_prefix || text.is_empty();
        Text { text: format!("{start}{text}"), is_prefix }
    }
}

prop_compose! {
    fn a_rule()(
        path in prop::collection::vec(a_text("/"), 0..3),
        name in prop::collection::vec(a_text(""), 0..2),
        argv0 in prop::collection::vec(a_text(""), 0..2),
        argv1 in prop::collection::vec(a_text(""), 0..2),
        parent in prop::collection::vec(a_text("/"), 0..2),
        uid in prop::collection::vec(0_u32..3, 0..2),
        interactive: Option<bool>,
        script: Option<bool>,
        origin in prop::collection::vec(prop::sample::select(Origin::ALL.to_vec()), 0..3),
    ) -> Rule {
        Rule { path, name, argv0, argv1, parent, uid, interactive, script, origin }
    }
}

prop_compose! {
    fn a_policy()(
        action in prop::sample::select(vec![Action::Observe, Action::Kill, Action::Deny]),
        host: bool,
        containers in 0..3,
        mut rules in prop::collection::vec(a_rule(), 1..3),
        mut exceptions in prop::collection::vec(a_rule(), 0..2),
    ) -> Policy {
        if action == Action::Deny {
            for rule in rules.iter_mut().chain(&mut exceptions) {
                (rule.argv0, rule.argv1) = (Vec::new(), Vec::new());
            }
        }
        let containers = match containers {
            0 => Containers::None,
            1 => Containers::All,
            _ => Containers::Selected(vec![selector("name:web").unwrap()]),
        };
        Policy { scope: Scope { containers, host }, exceptions, ..policy("p", action, rules) }
    }
}

prop_compose! {
    fn an_attempt()(
        path in "/([ab]{0,3}/)?[ab]{0,4}",
        argv0 in "-?(/[ab]/)?-?[ab]{0,3}",
        argv1 in "(/[ab]/)?[ab]{0,3}",
        parent in "/[ab]{0,3}",
        uid in 0_u32..3,
        interactive: bool,
        script: bool,
        origin in prop::sample::select(Origin::ALL.to_vec()),
    ) -> Attempt {
        let [path, argv0, argv1, parent] = [path, argv0, argv1, parent].map(String::into_bytes);
        Attempt { path, argv0, argv1, parent, uid, interactive, script, origin }
    }
}

proptest! {
    #[test]
    fn the_tables_decide_as_the_policies_read(
        policies in prop::collection::vec(a_policy(), 0..6),
        attempt in an_attempt(),
        enforces: bool,
        executables in prop::collection::vec(a_text("/"), 0..2),
        allows: bool,
        place in 0..3,
    ) {
        let containers = if allows { vec![selector("name:db").unwrap()] } else { Vec::new() };
        let mode = if enforces { Mode::Enforce } else { Mode::Observe };
        let guard = Guard { mode, policies, allow: Allow { executables, containers }, ..Guard::default() };
        let compiled = Compiled::new(&guard, true).unwrap();
        let container = match place {
            0 => None,
            1 => Some(container("web")),
            _ => Some(container("db")),
        };
        let scope = container.as_ref().map_or(compiled.tables.settings.host, |of| compiled.scope(of).rules);
        let outcomes = evaluate(&compiled, &attempt, scope);
        let fires = fires(&guard, &attempt, container.as_ref());
        let mut is_refused = false;
        for (hook, is_here) in [(hook::CHECK, true), (hook::EXEC, false)] {
            let here: Vec<_> = (0_u16..)
                .zip(guard.policies.iter().zip(&fires))
                .filter(|(_, (policy, fires))| **fires && (policy.action == Action::Deny) == is_here)
                .map(|(index, (policy, _))| (index, policy.action))
                .collect();
            let outcome = outcomes.iter().find(|outcome| outcome.hook == hook);
            prop_assert_eq!(outcome.is_none(), is_refused);
            let Some(outcome) = outcome else { continue };
            prop_assert_eq!(outcome.fired, here.iter().fold(0, |fired, (index, _)| fired | 1 << index));
            let strongest = here.iter().map(|(_, action)| *action).max();
            let first = here.iter().find(|(_, action)| Some(*action) == strongest).map(|(index, _)| *index);
            prop_assert_eq!(outcome.decided.map(|(index, _)| index), first);
            is_refused = enforces && is_here && first.is_some();
        }
    }
}
