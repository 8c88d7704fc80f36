//! Policies come in, the tables that the kernel decides by go out: each rule a bit, each dimension of an exec a set of them.

use std::collections::{BTreeMap, BTreeSet};

use namespan_ebpf::guard_wire::{self as wire, GuardSettings, Mask, TextKey, action};
use thiserror::Error;
use zerocopy::FromZeros as _;

use super::load::Tables;
use super::spec::{
    ALL_TEXTS_MAX, ALL_UIDS_MAX, Action, Budget, Containers, Guard, Mode, Origin, POLICIES_MAX, Policy, RULES_MAX,
    Rule, Text,
};
use crate::enrich::container::Container;

/// Why policies do not fit.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CompileError {
    #[error("{found} policies are too many: at most {POLICIES_MAX} fit; put rules of one action and scope into one")]
    Policies { found: usize },
    #[error(
        "{found} rules are too many: at most {RULES_MAX} of all policies fit, exceptions and the list of allowed \
         executables included; put texts that mean the same into one rule"
    )]
    Rules { found: usize },
    #[error("{found} texts are too many: at most {ALL_TEXTS_MAX} of all policies fit; use prefixes, such as /tmp/*")]
    Texts { found: usize },
    #[error("{found} user ids are too many: at most {ALL_UIDS_MAX} of all policies fit")]
    Uids { found: usize },
}

/// The tables, and what the bits in them mean.
#[derive(Clone, Debug)]
pub struct Compiled {
    pub tables: Tables,
    guard: Guard,
    /// Of each policy, in their order.
    bits: Vec<Bits>,
    /// The rule that allows executables, if there are some.
    allow: Mask,
}

/// Rules of a policy, by their bits.
#[derive(Clone, Debug)]
pub(super) struct Bits {
    pub rules: Vec<u32>,
    pub exceptions: Vec<u32>,
}

impl Bits {
    fn mask(&self) -> Mask {
        mask_of(&self.rules) | mask_of(&self.exceptions)
    }
}

fn mask_of(bits: &[u32]) -> Mask {
    bits.iter().fold(0, |mask, bit| mask | 1 << bit)
}

/// Something that the rules hold for is told of with their names.
const MATCH: &str = "match";
const EXCEPT: &str = "except";

impl Compiled {
    /// `lsm`: the kernel takes LSM programs; where it does not, what denies kills.
    pub fn new(guard: &Guard, lsm: bool) -> Result<Self, CompileError> {
        let policies = &guard.policies;
        if policies.len() > POLICIES_MAX {
            return Err(CompileError::Policies { found: policies.len() });
        }
        let is_allowing = !guard.allow.executables.is_empty();
        let of_policies: usize = policies.iter().map(|policy| policy.rules.len() + policy.exceptions.len()).sum();
        let found = of_policies + usize::from(is_allowing);
        if found > RULES_MAX {
            return Err(CompileError::Rules { found });
        }
        let mut builder = Builder::new();
        let allow = if is_allowing {
            let rule = Rule { path: guard.allow.executables.clone(), ..Rule::default() };
            1 << builder.rule(&rule)
        } else {
            0
        };
        let bits: Vec<_> = policies
            .iter()
            .map(|policy| Bits {
                rules: policy.rules.iter().map(|rule| builder.rule(rule)).collect(),
                exceptions: policy.exceptions.iter().map(|rule| builder.rule(rule)).collect(),
            })
            .collect();
        if builder.texts.len() > ALL_TEXTS_MAX {
            return Err(CompileError::Texts { found: builder.texts.len() });
        }
        if builder.uids.len() > ALL_UIDS_MAX {
            return Err(CompileError::Uids { found: builder.uids.len() });
        }
        let mut settings = builder.settings;
        (settings.host, settings.containers) = (allow, allow);
        let mut denies = false;
        for ((slot, policy), bits) in settings.policies.iter_mut().zip(policies).zip(&bits) {
            *slot = compiled(policy, bits, allow, guard.budget, lsm);
            denies |= slot.action == action::DENY;
            if policy.scope.host {
                settings.host |= bits.mask();
            }
            if policy.scope.containers == Containers::All {
                settings.containers |= bits.mask();
            }
        }
        settings.policy_count = u32::try_from(policies.len()).unwrap_or(u32::MAX);
        settings.enforces = u32::from(guard.mode == Mode::Enforce);
        let texts = united(&builder.texts);
        let uids = builder.uids.into_iter().collect();
        Ok(Self { tables: Tables { settings, texts, uids, denies }, guard: guard.clone(), bits, allow })
    }

    /// The rules that a container is in the scope of, as far as it is known.
    #[must_use]
    pub fn scope(&self, container: &Container) -> wire::Scope {
        if self.guard.allow.containers.iter().any(|selector| selector.holds(container)) {
            return wire::Scope { rules: 0 };
        }
        let concerned = self.guard.policies.iter().zip(&self.bits);
        let concerned = concerned.filter(|(policy, _)| policy.scope.containers.concern(container));
        wire::Scope { rules: concerned.fold(self.allow, |rules, (_, bits)| rules | bits.mask()) }
    }

    /// Whether containers differ in what holds for them, or all are as one that is not known.
    #[must_use]
    pub fn selects(&self) -> bool {
        let is_selecting = |policy: &Policy| matches!(policy.scope.containers, Containers::Selected(_));
        !self.guard.allow.containers.is_empty() || self.guard.policies.iter().any(is_selecting)
    }

    #[must_use]
    pub fn policies(&self) -> &[Policy] {
        &self.guard.policies
    }

    #[must_use]
    pub fn policy(&self, index: u16) -> Option<&Policy> {
        self.guard.policies.get(usize::from(index))
    }

    /// The settings that it was made of.
    #[must_use]
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// The first of a policy's rules among those that hold: `match[0]`.
    #[must_use]
    pub fn rule(&self, policy: u16, hold: Mask) -> Option<String> {
        let bits = self.bits.get(usize::from(policy))?;
        let index = bits.rules.iter().position(|bit| hold & 1 << bit != 0)?;
        Some(format!("{MATCH}[{index}]"))
    }

    /// The exceptions of a policy that hold: `except[0]`, or `guard.allow.executables`.
    pub(super) fn exceptions(&self, policy: usize, hold: Mask) -> Vec<String> {
        let of_policy = self.bits.get(policy).map(|bits| bits.exceptions.as_slice()).unwrap_or_default();
        let named = of_policy.iter().enumerate().filter(|(_, bit)| hold & 1 << **bit != 0);
        let named = named.map(|(index, _)| format!("{EXCEPT}[{index}]"));
        named.chain((hold & self.allow != 0).then(|| "guard.allow.executables".to_owned())).collect()
    }

    pub(super) fn bits(&self, policy: usize) -> Option<&Bits> {
        self.bits.get(policy)
    }
}

fn compiled(policy: &Policy, bits: &Bits, allow: Mask, budget: Option<Budget>, lsm: bool) -> wire::Policy {
    let action = match policy.action {
        Action::Observe => action::OBSERVE,
        Action::Deny if lsm => action::DENY,
        Action::Kill | Action::Deny => action::KILL,
    };
    let window = budget.map_or(0, |budget| u64::try_from(budget.window.as_nanos()).unwrap_or(u64::MAX));
    wire::Policy {
        matches: mask_of(&bits.rules),
        exceptions: mask_of(&bits.exceptions) | allow,
        budget: budget.map_or(0, |budget| budget.kills),
        action,
        reserved: [0; 3],
        budget_window_ns: window,
    }
}

/// Texts of a dimension as bytes: those that are whole end with NUL, which no other text has.
type Texts = BTreeMap<(u8, Vec<u8>), Mask>;

struct Builder {
    settings: GuardSettings,
    texts: Texts,
    uids: BTreeMap<u32, Mask>,
    next: u32,
}

impl Builder {
    fn new() -> Self {
        let settings = GuardSettings::new_zeroed();
        Self { settings, texts: Texts::new(), uids: BTreeMap::new(), next: 0 }
    }

    /// Takes in a rule, and gives it a bit.
    fn rule(&mut self, rule: &Rule) -> u32 {
        let bit = self.next;
        self.next += 1;
        let mask: Mask = 1 << bit;
        let settings = &mut self.settings;
        let any_and_prefix = settings.any_text.iter_mut().zip(&mut settings.prefix_text);
        for ((dimension, texts), (any, prefix)) in (0_u8..).zip(rule.texts()).zip(any_and_prefix) {
            if texts.is_empty() {
                *any |= mask;
                continue;
            }
            settings.asks |= 1 << dimension;
            for text in texts {
                *prefix |= if text.is_prefix { mask } else { 0 };
                *self.texts.entry((dimension, bytes_of(text))).or_default() |= mask;
            }
        }
        if rule.uid.is_empty() {
            settings.any_uid |= mask;
        }
        for uid in &rule.uid {
            *self.uids.entry(*uid).or_default() |= mask;
        }
        for (asked, holds) in [(rule.interactive, &mut settings.interactive), (rule.script, &mut settings.script)] {
            for (value, holds) in [false, true].into_iter().zip(holds) {
                if asked.is_none_or(|asked| asked == value) {
                    *holds |= mask;
                }
            }
        }
        for (origin, holds) in Origin::ALL.iter().zip(&mut settings.origins) {
            if rule.origin.is_empty() || rule.origin.contains(origin) {
                *holds |= mask;
            }
        }
        bit
    }
}

fn bytes_of(Text { text, is_prefix }: &Text) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    if !is_prefix {
        bytes.push(0);
    }
    bytes
}

/// The trie yields the longest match alone: so each has the rules of all that it begins with. In the order of the bytes, what
/// a text begins with comes before it, with nothing but such texts in between.
fn united(texts: &Texts) -> Vec<(TextKey, u32, Mask)> {
    let mut open: Vec<(u8, &[u8], Mask)> = Vec::new();
    let mut found = Vec::with_capacity(texts.len());
    for ((dimension, bytes), mask) in texts {
        while open.pop_if(|(of, prefix, _)| of != dimension || !bytes.starts_with(prefix)).is_some() {}
        let mask = mask | open.last().map_or(0, |(.., mask)| *mask);
        open.push((*dimension, bytes, mask));
        let (key, _) = key(*dimension, bytes);
        let bits = u32::try_from(8 * (1 + bytes.len())).unwrap_or(u32::MAX);
        found.push((key, bits, mask));
    }
    found
}

/// As the kernel looks a text up: cut off where it is too long. The second: how many bytes of the text there are.
pub(super) fn key(dimension: u8, bytes: &[u8]) -> (TextKey, usize) {
    const { assert!(wire::TEXT_MAX < size_of::<TextKey>()) };
    let mut text = [0; wire::TEXT_MAX + 1];
    let len = bytes.len().min(text.len());
    for (to, from) in text.iter_mut().zip(bytes) {
        *to = *from;
    }
    (TextKey { dimension, text }, len)
}

impl Compiled {
    /// Labels of the rules that a mask has, for messages: `shells match[0]`.
    #[must_use]
    pub fn named(&self, rules: Mask) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (policy, bits) in self.guard.policies.iter().zip(&self.bits) {
            for (kind, of) in [(MATCH, &bits.rules), (EXCEPT, &bits.exceptions)] {
                let held = of.iter().enumerate().filter(|(_, bit)| rules & 1 << **bit != 0);
                names.extend(held.map(|(index, _)| format!("{} {kind}[{index}]", policy.name)));
            }
        }
        names
    }
}
