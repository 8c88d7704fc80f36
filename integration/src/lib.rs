//! What the cases stand on: programs to run, a collector to read back from, the real binary, and Docker.

#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking and says why it is skipped"
)]

pub mod attribute;
pub mod called;
pub mod cgroup;
pub mod containerd;
pub mod cri;
pub mod docker;
pub mod host;
pub mod image;
pub mod marks;
pub mod namespan;
pub mod needs;
pub mod podman;
pub mod process;
pub mod program;
pub mod relay;
pub mod rotel;
pub mod settings;
pub mod sink;
pub mod span;
pub mod strace;
pub mod terminal;
pub mod time;
pub mod user;
pub mod watched;
pub mod workload;

use std::time::Duration;

/// How long anything may take that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(30);
