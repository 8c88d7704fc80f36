//! An exec that might be comes in, over the tables that the kernel has; what the kernel would do about it goes out.

use namespan_ebpf::guard_wire::{Mask, action, dimension, hook};

use super::compile::{Compiled, key};
use super::spec::Origin;
use crate::model::text::base_name;

/// An exec, as the kernel would see it.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Of the executable, resolved.
    pub path: Vec<u8>,
    pub argv0: Vec<u8>,
    pub argv1: Vec<u8>,
    /// Of the parent's executable.
    pub parent: Vec<u8>,
    pub uid: u32,
    pub interactive: bool,
    /// It is the interpreter of a script.
    pub script: bool,
    pub origin: Origin,
}

/// What the dimensions of an exec yield: the rules that each is met by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masks {
    pub texts: [Mask; dimension::COUNT],
    pub uid: Mask,
    pub interactive: Mask,
    pub script: Mask,
    pub origin: Mask,
    pub scope: Mask,
}

impl Masks {
    /// The rules that hold.
    #[must_use]
    pub fn rules(&self) -> Mask {
        let Self { texts, uid, interactive, script, origin, scope } = self;
        texts.iter().fold(uid & interactive & script & origin & scope, |rules, text| rules & text)
    }
}

/// What would be decided at one of the hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// One of [`hook`].
    pub hook: u8,
    pub rules: Mask,
    /// Policies that fire, by bit.
    pub fired: u32,
    /// The policy that decides, and what it asks for, one of [`action`]; `None`: none fires.
    pub decided: Option<(u16, u8)>,
}

/// Of each dimension, what it yields. `scope`: the rules that concern the process's container, or the host.
#[must_use]
pub fn masks(compiled: &Compiled, attempt: &Attempt, scope: Mask) -> Masks {
    let settings = &compiled.tables.settings;
    let argv0 = base_name(&attempt.argv0);
    let argv0 = argv0.strip_prefix(b"-").unwrap_or(argv0);
    let mut texts = settings.any_text;
    for (dimension, text) in [
        (dimension::PATH, attempt.path.as_slice()),
        (dimension::NAME, base_name(&attempt.path)),
        (dimension::PARENT, &attempt.parent),
        (dimension::ARGV0, argv0),
        (dimension::ARGV1, base_name(&attempt.argv1)),
    ] {
        if let Some(mask) = texts.get_mut(dimension) {
            *mask |= looked_up(compiled, dimension, text);
        }
    }
    let of_uid = compiled.tables.uids.iter().find(|(uid, _)| *uid == attempt.uid);
    let origin = Origin::ALL.iter().position(|origin| *origin == attempt.origin);
    Masks {
        texts,
        uid: settings.any_uid | of_uid.map_or(0, |(_, mask)| *mask),
        interactive: settings.interactive[usize::from(attempt.interactive)],
        script: settings.script[usize::from(attempt.script)],
        origin: origin.and_then(|index| settings.origins.get(index)).copied().unwrap_or(0),
        scope,
    }
}

/// As the trie does: the longest entry that the text begins with.
fn looked_up(compiled: &Compiled, dimension: usize, text: &[u8]) -> Mask {
    let Ok(dimension) = u8::try_from(dimension) else { return 0 };
    let (wanted, _) = key(dimension, text);
    let matching = compiled.tables.texts.iter().filter(|(entry, bits, _)| {
        let bytes = (*bits as usize / 8).saturating_sub(1);
        entry.dimension == dimension && entry.text.get(..bytes) == wanted.text.get(..bytes)
    });
    matching.max_by_key(|(_, bits, _)| *bits).map_or(0, |(.., mask)| *mask)
}

/// What would be decided at both hooks, in their order. What is refused at the first is never seen by the second.
#[must_use]
pub fn evaluate(compiled: &Compiled, attempt: &Attempt, scope: Mask) -> Vec<Outcome> {
    let rules = masks(compiled, attempt, scope).rules();
    let check = at(compiled, hook::CHECK, rules);
    let is_refused = compiled.tables.settings.enforces != 0 && check.decided.is_some();
    if is_refused { vec![check] } else { vec![check, at(compiled, hook::EXEC, rules)] }
}

fn at(compiled: &Compiled, hook: u8, rules: Mask) -> Outcome {
    let settings = &compiled.tables.settings;
    let mut outcome = Outcome { hook, rules, fired: 0, decided: None };
    let policies = settings.policies.iter().take(settings.policy_count as usize);
    for (index, policy) in (0_u16..).zip(policies) {
        let is_here = (policy.action == action::DENY) == (hook == hook::CHECK);
        if !is_here || rules & policy.matches == 0 || rules & policy.exceptions != 0 {
            continue;
        }
        outcome.fired |= 1 << index;
        if outcome.decided.is_none_or(|(_, action)| policy.action > action) {
            outcome.decided = Some((index, policy.action));
        }
    }
    outcome
}

#[cfg(test)]
mod tests;
