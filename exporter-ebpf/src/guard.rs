//! The programs of the guard, an object of their own: a run without policies loads none of it.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
#[path = "guard/arguments.rs"]
mod arguments;
#[cfg(target_arch = "bpf")]
#[path = "guard/check.rs"]
mod check;
#[cfg(target_arch = "bpf")]
#[path = "guard/container.rs"]
mod container;
#[cfg(target_arch = "bpf")]
#[path = "guard/decide.rs"]
mod decide;
#[cfg(target_arch = "bpf")]
#[path = "guard/exec.rs"]
mod exec;
#[cfg(target_arch = "bpf")]
mod identity;
#[cfg(target_arch = "bpf")]
#[expect(dead_code, unused_imports, unused_macros, reason = "the other programs use the rest")]
mod kernel;
#[cfg(target_arch = "bpf")]
#[expect(dead_code, reason = "as of `kernel`")]
mod lineage;
#[cfg(target_arch = "bpf")]
#[path = "guard/origin.rs"]
mod origin;
#[cfg(target_arch = "bpf")]
#[expect(dead_code, reason = "as of `kernel`")]
mod path;
#[cfg(target_arch = "bpf")]
#[expect(dead_code, reason = "as of `kernel`")]
mod record;
#[cfg(target_arch = "bpf")]
#[path = "guard/room.rs"]
mod room;
#[cfg(target_arch = "bpf")]
#[path = "guard/subject.rs"]
mod subject;
#[cfg(target_arch = "bpf")]
#[path = "guard/tables.rs"]
mod tables;
#[cfg(target_arch = "bpf")]
#[path = "guard/tell.rs"]
mod tell;

/// The helpers that read kernel memory are for GPL-compatible programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(all(target_arch = "bpf", not(test)))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The programs are a BPF object; on the host this binary is nothing.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
