//! The programs on the running kernel, as root: what happens here is told, exactly, and what is told is true.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and says why it is skipped"
)]

#[path = "kernel/argv.rs"]
mod argv;
#[path = "kernel/exits.rs"]
mod exits;
#[path = "kernel/failed.rs"]
mod failed;
#[path = "kernel/filters.rs"]
mod filters;
#[path = "kernel/guard.rs"]
mod guard;
#[path = "kernel/guarding.rs"]
mod guarding;
#[path = "kernel/helpers.rs"]
mod helpers;
#[path = "kernel/identity.rs"]
mod identity;
#[path = "kernel/lineage.rs"]
mod lineage;
#[path = "kernel/load.rs"]
mod load;
#[path = "kernel/losses.rs"]
mod losses;
#[path = "kernel/paths.rs"]
mod paths;
#[path = "kernel/systemd.rs"]
mod systemd;
#[path = "kernel/workload.rs"]
mod workload;
#[path = "kernel/uprobes.rs"]
mod uprobes;
#[path = "kernel/watch.rs"]
mod watch;
