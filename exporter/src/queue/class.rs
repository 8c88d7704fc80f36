//! What a batch holds, and so what is given up first where there is no room for all.

use crate::config::Signal;
use crate::model::semconv;

/// In the order in which they are kept: of the last class the oldest batches go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Log records of what the guard did.
    Enforcement,
    /// Log records of what Namespan itself has to say, such as what was lost.
    Note,
    /// Log records of execs, failed ones too.
    Exec,
    /// Log records of exits.
    Exit,
    /// Log records of uprobes' hits.
    Probe,
    /// Spans of processes.
    Span,
    /// Spans of calls that uprobes see.
    Call,
}

impl Class {
    pub const ALL: [Self; 7] =
        [Self::Enforcement, Self::Note, Self::Exec, Self::Exit, Self::Probe, Self::Span, Self::Call];

    #[must_use]
    pub fn signal(self) -> Signal {
        match self {
            Self::Enforcement | Self::Note | Self::Exec | Self::Exit | Self::Probe => Signal::Logs,
            Self::Span | Self::Call => Signal::Traces,
        }
    }

    /// Name of the scope that its records and spans are told under.
    #[must_use]
    pub fn scope(self) -> &'static str {
        match self {
            Self::Enforcement => semconv::SCOPE_GUARD,
            Self::Note | Self::Exec | Self::Exit | Self::Span => semconv::SCOPE_EXEC,
            Self::Probe | Self::Call => semconv::SCOPE_UPROBE,
        }
    }
}
