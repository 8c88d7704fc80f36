//! What a batch holds, and so what is given up first where there is no room for all.

use crate::config::Signal;

/// In the order in which they are kept: of the last class the oldest batches go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Log records of what Namespan itself has to say, such as what was lost.
    Note,
    /// Log records of execs, failed ones too.
    Exec,
    /// Log records of exits.
    Exit,
    /// Spans; alone in their queue.
    Span,
}

impl Class {
    pub const ALL: [Self; 4] = [Self::Note, Self::Exec, Self::Exit, Self::Span];

    #[must_use]
    pub fn signal(self) -> Signal {
        match self {
            Self::Note | Self::Exec | Self::Exit => Signal::Logs,
            Self::Span => Signal::Traces,
        }
    }
}
