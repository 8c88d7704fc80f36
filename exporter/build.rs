//! Builds the kernel side with whichever toolchain can, for `attach` to embed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};

const TARGET: &str = "bpfel-unknown-none";
const REMEDY: &str = "building the BPF programs takes one of
  - a rustc with a prebuilt `core` for bpfel-unknown-none: on Debian `make deps` installs it (rustc-web, cargo-web,
    libstd-rust-web-dev-bpf), or
  - rustup's nightly with rust-src: `rustup toolchain install nightly --component rust-src`,
and bpf-linker of the same LLVM in PATH (`make deps`, or `cargo install bpf-linker`).";

fn main() -> Result<()> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let kernel_side = manifest.parent().context("the crate stands in a workspace")?.join("exporter-ebpf");
    for input in ["src", "Cargo.toml"] {
        println!("cargo:rerun-if-changed={}", kernel_side.join(input).display());
    }

    if env::var("CARGO_CFG_TARGET_ENDIAN")? != "little" {
        bail!("only little-endian machines are supported");
    }
    if find("bpf-linker").is_none() {
        bail!("bpf-linker is not in PATH\n{REMEDY}");
    }
    if let Some(rustc) = rustc_with_bpf_core() {
        return build(&rustc, &kernel_side);
    }
    if has_nightly() {
        return aya_build::build_ebpf(
            [aya_build::Package {
                name: "namespan-ebpf",
                root_dir: kernel_side.to_str().context("the path of the workspace is not UTF-8")?,
                ..aya_build::Package::default()
            }],
            aya_build::Toolchain::Nightly,
        );
    }
    bail!("no toolchain for {TARGET}\n{REMEDY}")
}

/// A compiler that needs neither nightly nor the sources of `core`.
fn rustc_with_bpf_core() -> Option<PathBuf> {
    let system = PathBuf::from("/usr/bin/rustc");
    find("rustc").into_iter().chain([system]).find(|rustc| {
        let Ok(sysroot) = Command::new(rustc).args(["--print", "sysroot"]).output() else { return false };
        let sysroot = PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim());
        sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir() && cargo_beside(rustc).is_file()
    })
}

fn cargo_beside(rustc: &Path) -> PathBuf {
    rustc.with_file_name("cargo")
}

fn build(rustc: &Path, kernel_side: &Path) -> Result<()> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let target_dir = out.join("bpf");
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let mut flags =
        vec![format!("--cfg=bpf_target_arch=\"{arch}\""), "-Cdebuginfo=2".to_owned(), "-Clink-arg=--btf".to_owned()];
    flags.extend(without_our_paths(kernel_side, &target_dir)?);
    let mut cargo = Command::new(cargo_beside(rustc));
    cargo
        .current_dir(kernel_side)
        .args(["build", "--release", "--locked", "--bins", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .env("RUSTC", rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // aya-ebpf opens one unstable feature, and the programs of uprobes and of the guard another.
        .env("RUSTC_BOOTSTRAP", "aya_ebpf,guard,uprobes")
        // Set by the outer cargo for the host's compiler.
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN");
    let status = cargo.status().with_context(|| format!("running {}", cargo_beside(rustc).display()))?;
    if !status.success() {
        bail!("building the BPF programs with {} failed", rustc.display());
    }
    for object in ["probes", "uprobes", "guard"] {
        let built = target_dir.join(TARGET).join("release").join(object);
        std::fs::copy(&built, out.join(object)).with_context(|| format!("copying {}", built.display()))?;
    }
    Ok(())
}

/// BTF names source files: wherever they stand, the object is to be the same.
fn without_our_paths(kernel_side: &Path, target_dir: &Path) -> Result<Vec<String>> {
    println!("cargo:rerun-if-env-changed=CARGO_HOME");
    let cargo_home = match env::var_os("CARGO_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo"),
    };
    let workspace = kernel_side.parent().context("the crate stands in a workspace")?;
    let places = [(workspace, "/namespan"), (&cargo_home, "/cargo"), (target_dir, "/namespan/target/bpf")];
    Ok(places.map(|(place, name)| format!("--remap-path-prefix={}={name}", place.display())).into())
}

fn has_nightly() -> bool {
    Command::new("rustup").args(["run", "nightly", "rustc", "--version"]).output().is_ok_and(|out| out.status.success())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").ok_or_else(|| anyhow!("no PATH")).ok()?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}
