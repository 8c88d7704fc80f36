//! The programs of uprobes, an object of their own: a run without uprobes loads none of it.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
#[path = "uprobe/capture.rs"]
mod capture;
#[cfg(target_arch = "bpf")]
#[expect(dead_code, reason = "as of `kernel`")]
mod identity;
#[cfg(target_arch = "bpf")]
#[expect(dead_code, unused_imports, unused_macros, reason = "the other programs use the rest")]
mod kernel;
#[cfg(target_arch = "bpf")]
#[path = "uprobe/mapped.rs"]
mod mapped;
#[cfg(target_arch = "bpf")]
mod object;
#[cfg(target_arch = "bpf")]
#[path = "uprobe/place.rs"]
mod place;
#[cfg(target_arch = "bpf")]
#[path = "uprobe/probes.rs"]
mod probes;

/// The programs are a BPF object; on the host this binary is nothing.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
