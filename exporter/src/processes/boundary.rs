//! Where traces end and others begin.

use super::Seen;
use crate::config;
use crate::model::text::base_name;

/// Why a span begins a trace though its process has a parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary {
    /// The parent is in another container, or on the host.
    Container,
    /// The parent is process 1 of a PID namespace.
    NamespaceInit,
    /// The parent runs one of the programs that the settings name.
    Executable,
    /// The parent, or its trace, is older than a span may last.
    LongLived,
    /// The process leads the session of a terminal, a login, or was typed into the shell that does.
    Terminal,
    /// The trace has as many spans as it may have.
    TraceFull,
    /// The parent was not seen to exec, or is forgotten.
    UnknownParent,
}

impl Boundary {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::NamespaceInit => "namespace_init",
            Self::Executable => "executable",
            Self::LongLived => "long_lived",
            Self::Terminal => "terminal",
            Self::TraceFull => "trace_full",
            Self::UnknownParent => "unknown_parent",
        }
    }
}

/// What makes a process a boundary for its children, as of its last exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub namespace_init: bool,
    /// Its executable is one of those listed.
    pub listed: bool,
}

impl Facts {
    pub(super) fn of(seen: &Seen<'_>, settings: &config::Spans) -> Self {
        let name = base_name(seen.exec.path);
        let listed = settings.boundaries.iter().any(|pattern| config::matches(pattern, name));
        Self { namespace_init: seen.event.process.vpid == 1, listed }
    }
}
