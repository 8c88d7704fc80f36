//! The kernel matrix: the tests that run as root on this kernel run on Debian's others too, each in a virtual machine; a table
//! of what each kernel can is printed, and compared with the one that `docs/kernels.md` keeps.
//!
//! Not as root. `NAMESPAN_VM_KERNELS=bullseye,sid` runs those only, `NAMESPAN_VM_TESTS=uprobe` the tests whose names match
//! (a regular expression of grep's) only; neither compares. `NAMESPAN_BLESS=1` rewrites the table.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod guest;
mod initrd;
mod results;
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;

use namespan_integration::needs::{self, Need};

/// A suite of Debian's, what it is called, and the kernel that it began with.
struct Suite {
    name: &'static str,
    shown: &'static str,
    /// Where it can't be fetched, the others are tested without it: it is in the middle of something at times.
    moves: bool,
}

const SUITES: [Suite; 4] = [
    Suite { name: "bullseye", shown: "Debian 11, 5.10", moves: false },
    Suite { name: "bookworm", shown: "Debian 12, 6.1", moves: false },
    Suite { name: "trixie", shown: "Debian 13, 6.12", moves: false },
    Suite { name: "sid", shown: "Debian sid", moves: true },
];

/// Test binaries of the workspace that run in each machine. Whatever they start beyond busybox's applets is one of
/// [`initrd::PROGRAMS`].
const TESTS: [&str; 1] = ["kernel"];

#[test]
fn every_kernel_of_the_matrix_passes_what_this_one_does() {
    let programs = ["apt-get", "dpkg", "cc", "cpio", "perl", "readelf", "script", "setpriv", "xz"].map(Need::Program);
    if !(needs::met(&[Need::Qemu]) && needs::met(&programs)) {
        return;
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let wanted = std::env::var("NAMESPAN_VM_KERNELS").ok();
    let filter = std::env::var("NAMESPAN_VM_TESTS").ok();
    let is_wanted =
        |suite: &&Suite| wanted.as_ref().is_none_or(|names| names.split(',').any(|name| name == suite.name));
    let kernels = workspace.join("target/ci/kernels");
    let mut suites = Vec::new();
    for suite in SUITES.iter().filter(is_wanted) {
        match fetch(&kernels, suite) {
            Ok(()) => {
                println!("{}: to be booted", suite.shown);
                suites.push(suite);
            }
            Err(why) if suite.moves => println!("skipped: {}: {why}", suite.shown),
            Err(why) => return needs::skip(&why),
        }
    }
    let scratch = workspace.join("target/ci/vm");
    let initrd = initrd::build(&scratch, &kernels, &suites, filter.as_deref());
    let mut columns = Vec::new();
    let mut failures = Vec::new();
    for (suite, results) in run_all(&suites, &kernels, &initrd, &scratch) {
        match results {
            Ok(results) => {
                print!("{}: {results}", suite.shown);
                failures.extend(results.failures().map(|failure| format!("{}: {failure}", suite.shown)));
                columns.push((suite, results));
            }
            Err(why) => failures.push(format!("{}: {why}", suite.shown)),
        }
    }
    let table = table::of(&columns);
    println!("\n{table}");
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    if wanted.is_none() && filter.is_none() {
        table::keep(&workspace.join("docs/kernels.md"), &table);
    }
}

/// Unless it is there already.
fn fetch(directory: &Path, suite: &Suite) -> Result<(), String> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vm/kernels");
    let output = Command::new(script).arg(directory).arg(suite.name).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(format!("the kernel could not be fetched:\n{said}")) }
}

/// All machines at once: each does one thing at a time, and waits in between.
fn run_all<'a>(
    suites: &[&'a Suite],
    kernels: &Path,
    initrd: &Path,
    scratch: &Path,
) -> Vec<(&'a Suite, Result<results::Results, String>)> {
    std::thread::scope(|scope| {
        let booted = suites.iter().map(|suite| {
            let machine = guest::Machine { kernel: kernels.join(suite.name).join("vmlinuz"), initrd: initrd.into() };
            let folder = scratch.join(suite.name);
            (*suite, scope.spawn(move || machine.run(&folder)))
        });
        let booted: Vec<_> = booted.collect();
        booted.into_iter().map(|(suite, machine)| (suite, machine.join().unwrap())).collect()
    })
}
