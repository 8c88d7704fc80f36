//! What can be wrong with the settings, each with the place it came from and the remedy.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::guard::compile::CompileError;

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{origin}: `{value}` is not {expected}")]
    Invalid { origin: Origin, value: String, expected: String },
    /// Of a value that may be secret: it is told of, never shown.
    #[error("{origin}: {problem}")]
    Secret { origin: Origin, problem: String },
    #[error("{origin}: {found} entries, at most {most} fit")]
    TooMany { origin: Origin, found: usize, most: usize },
    #[error("{origin}: the value is not UTF-8")]
    NotUtf8 { origin: Origin },
    #[error("{origin}: {remedy}")]
    Unsupported { origin: Origin, remedy: &'static str },
    /// Of a client's certificate and key, one is of no use without the other.
    #[error("{origin}: mutual TLS takes a certificate and its key, but the {lacking} is missing: set {remedy} too")]
    HalfAnIdentity { origin: Origin, lacking: &'static str, remedy: String },
    #[error(
        "a batch of {batch} {unit} ({batch_origin}) does not fit into a queue of {queue} {unit} ({queue_origin}): \
         lower the first or raise the second"
    )]
    BatchOverQueue {
        unit: &'static str,
        batch: usize,
        batch_origin: Box<Origin>,
        queue: usize,
        queue_origin: Box<Origin>,
    },
    /// Of a probe on the command line.
    #[error("{problem}")]
    Probe { problem: String },
    #[error("flag --config: cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// A file or folder of policies.
    #[error("{origin}: cannot read {}", path.display())]
    Policies { origin: &'static str, path: PathBuf, source: std::io::Error },
    /// All policies together.
    #[error("guard: {0}")]
    Guard(CompileError),
    /// Not YAML, or not our schema.
    #[error("{}{}: {problem}", path.display(), Place { line: *line, key })]
    File { path: PathBuf, line: Option<u64>, key: String, problem: String },
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Flag(&'static str),
    Variable(&'static str),
    File { path: Arc<Path>, line: u64, key: String },
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::File { path, line, key } => {
                write!(f, "{}{}", path.display(), Place { line: Some(*line).filter(|line| *line > 0), key })
            }
            Self::Default => f.write_str("the default"),
        }
    }
}

struct Place<'a> {
    line: Option<u64>,
    key: &'a str,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, " line {line}")?;
        }
        if self.key.is_empty() { Ok(()) } else { write!(f, ": {}", self.key) }
    }
}
