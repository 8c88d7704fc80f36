//! Foreign bytes come in, and what a reader makes of them has to hold: each module is one target, and panics where it does
//! not.
#![expect(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a target fails by panicking")]

pub mod ring;
pub mod hit;
pub mod redact;
pub mod context;
pub mod cgroup;
pub mod btf;
pub mod elf;
pub mod config;
pub mod uprobe;
pub mod answer;
pub mod docker;
pub mod cri;
pub mod containerd;
pub mod files;
pub mod spool;

mod container;

/// A target: its name, and what it does with some bytes.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 15] = [
    ("ring", ring::check),
    ("hit", hit::check),
    ("redact", redact::check),
    ("context", context::check),
    ("cgroup", cgroup::check),
    ("btf", btf::check),
    ("elf", elf::check),
    ("config", config::check),
    ("uprobe", uprobe::check),
    ("answer", answer::check),
    ("docker", docker::check),
    ("cri", cri::check),
    ("containerd", containerd::check),
    ("files", files::check),
    ("spool", spool::check),
];

/// Takes one byte off the front; 0 where there is none.
fn byte(data: &mut &[u8]) -> u8 {
    let Some((first, rest)) = data.split_first() else { return 0 };
    *data = rest;
    *first
}

/// Takes off so many bytes as the first two say, little endian, or all there are.
fn part<'a>(data: &mut &'a [u8]) -> &'a [u8] {
    let len = usize::from(u16::from_le_bytes([byte(data), byte(data)])).min(data.len());
    let (part, rest) = data.split_at(len);
    *data = rest;
    part
}
