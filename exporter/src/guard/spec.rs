//! One policy, as it is asked for: which programs, of whom, and what is done about them.

use crate::enrich::container::Container;
use crate::enrich::selection::Selector;

pub use namespan_ebpf::guard_wire::{POLICIES_MAX, RULES_MAX};

/// Longest text of a condition, in bytes.
pub const TEXT_MAX: usize = namespan_ebpf::guard_wire::TEXT_MAX;
/// Most texts of one condition.
pub const TEXTS_MAX: usize = 256;
/// Most texts of all policies together.
pub const ALL_TEXTS_MAX: usize = 4096;
/// Most user ids of one condition.
pub const UIDS_MAX: usize = 256;
/// Most user ids of all policies together.
pub const ALL_UIDS_MAX: usize = 1024;
/// Most selectors of one scope.
pub const SELECTORS_MAX: usize = 64;
/// Longest description of a policy, in bytes.
pub const DESCRIPTION_MAX: usize = 1024;

/// A policy fires for an exec in its scope that one of its rules holds for, and none of its exceptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// As a uprobe's; unique among all policies.
    pub name: String,
    /// Empty: none.
    pub description: String,
    /// OTLP's severity number, from 1 to 24, of what is told of it.
    pub severity: u8,
    pub action: Action,
    pub scope: Scope,
    /// Never empty.
    pub rules: Vec<Rule>,
    pub exceptions: Vec<Rule>,
}

impl Policy {
    /// Keys of the labels that its containers are selected by.
    pub fn label_keys(&self) -> impl Iterator<Item = &str> {
        let selectors = match &self.scope.containers {
            Containers::Selected(selectors) => selectors.as_slice(),
            Containers::None | Containers::All => &[],
        };
        selectors.iter().flat_map(Selector::label_keys)
    }
}

/// A stronger one goes before a weaker one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Only told of.
    Observe,
    /// `SIGKILL`, when the program's image is in place and none of it has run.
    Kill,
    /// The exec fails with `EPERM`, and its caller goes on.
    Deny,
}

impl Action {
    /// OTLP's ERROR for what stops a program, its WARN for what is told of only.
    #[must_use]
    pub fn severity(self) -> u8 {
        match self {
            Self::Observe => 13,
            Self::Kill | Self::Deny => 17,
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Kill => "kill",
            Self::Deny => "deny",
        }
    }
}

/// Whom a policy concerns: containers, the host, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub containers: Containers,
    /// Processes outside containers.
    pub host: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Containers {
    None,
    /// From the first exec in each, known or not.
    All,
    /// Those for which one of these holds, from when they are known. Never empty.
    Selected(Vec<Selector>),
}

impl Containers {
    #[must_use]
    pub fn concern(&self, container: &Container) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Selected(selectors) => selectors.iter().any(|selector| selector.holds(container)),
        }
    }
}

/// Holds for an exec that meets each of its conditions. An empty list and `None` are no condition; there is at least one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The executable's absolute path, as the kernel has resolved it.
    pub path: Vec<Text>,
    /// Its last component.
    pub name: Vec<Text>,
    /// Last component of `argv[0]`, without a `-` before it.
    pub argv0: Vec<Text>,
    /// Last component of `argv[1]`.
    pub argv1: Vec<Text>,
    /// The parent's executable, as `path`.
    pub parent: Vec<Text>,
    /// Effective user id, as the host numbers users.
    pub uid: Vec<u32>,
    /// Whether there is a controlling terminal.
    pub interactive: Option<bool>,
    /// Whether it is the interpreter of a script, and was not asked for itself.
    pub script: Option<bool>,
    pub origin: Vec<Origin>,
}

impl Rule {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The texts of each dimension, by [`namespan_ebpf::guard_wire::dimension`].
    #[must_use]
    pub fn texts(&self) -> [&[Text]; namespan_ebpf::guard_wire::dimension::COUNT] {
        [&self.path, &self.name, &self.parent, &self.argv0, &self.argv1]
    }

    /// Whether it asks for arguments, which are not settled before the program is in place.
    #[must_use]
    pub fn asks_for_arguments(&self) -> bool {
        !self.argv0.is_empty() || !self.argv1.is_empty()
    }
}

/// A text as it is, or what one begins with.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Text {
    pub text: String,
    pub is_prefix: bool,
}

/// Where an executable comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The image, or on a host without layers the root's file system.
    Image,
    /// Written or changed since the container was made.
    Changed,
    /// Another file system: a volume, a tmpfs, a bind mount.
    Mounted,
    /// Memory, without a file.
    Memfd,
    /// A file that has no name any more.
    Deleted,
    /// It could not be told.
    Unknown,
}

impl Origin {
    /// By [`namespan_ebpf::guard_wire::origin`].
    pub const ALL: [Self; namespan_ebpf::guard_wire::origin::COUNT] =
        [Self::Image, Self::Changed, Self::Mounted, Self::Memfd, Self::Deleted, Self::Unknown];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Changed => "changed",
            Self::Mounted => "mounted",
            Self::Memfd => "memfd",
            Self::Deleted => "deleted",
            Self::Unknown => "unknown",
        }
    }
}

/// Everything of the settings' section `guard`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    pub mode: Mode,
    /// At most [`POLICIES_MAX`], no name twice; none: there is no guard.
    pub policies: Vec<Policy>,
    pub allow: Allow,
    /// `None`: no limit.
    pub budget: Option<Budget>,
    /// How long actions are taken without a word of ours.
    pub lease: std::time::Duration,
    /// It goes on when we end.
    pub persist: bool,
    pub without_lsm: WithoutLsm,
    /// Files and folders that the policies were read from, and files that were found in those.
    pub sources: Vec<std::path::PathBuf>,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            mode: Mode::Observe,
            policies: Vec::new(),
            allow: Allow::default(),
            budget: Some(Budget::default()),
            lease: std::time::Duration::from_secs(10),
            persist: false,
            without_lsm: WithoutLsm::Refuse,
            sources: Vec::new(),
        }
    }
}

impl Guard {
    /// Keys of the labels that containers are selected by.
    pub fn label_keys(&self) -> impl Iterator<Item = &str> {
        let allowed = self.allow.containers.iter().flat_map(Selector::label_keys);
        self.policies.iter().flat_map(Policy::label_keys).chain(allowed)
    }

    /// Whether the kernel is asked to refuse an exec.
    #[must_use]
    pub fn denies(&self) -> bool {
        self.policies.iter().any(|policy| policy.action == Action::Deny)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All that fires is told of, nothing is stopped.
    Observe,
    Enforce,
}

impl Mode {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }
}

/// What no policy touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    /// As [`Rule::path`].
    pub executables: Vec<Text>,
    pub containers: Vec<Selector>,
}

/// Kills by one policy in one container within the window, past which it does nothing there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub kills: u32,
    pub window: std::time::Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { kills: 20, window: std::time::Duration::from_secs(60) }
    }
}

/// What becomes of policies that deny, where the kernel takes no LSM programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithoutLsm {
    /// There is no guard.
    Refuse,
    /// They kill.
    Kill,
}
