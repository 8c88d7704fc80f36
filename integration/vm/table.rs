//! Kernel by capability, each cell from what ran in that machine.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::Suite;
use crate::results::{Outcome, Results, Test};

/// What a cell stands on.
enum Evidence {
    /// Tests whose names begin so, all of them.
    Tests(&'static [&'static str]),
    /// What `namespan check` says.
    Check(&'static str),
    /// A figure, which is not compared.
    Figure(&'static str),
}

const CAPABILITIES: [(&str, Evidence); 14] = [
    ("exec: path, arguments", Evidence::Tests(&["argv::", "paths::"])),
    ("exec that failed", Evidence::Tests(&["failed::"])),
    ("exit: code, signal", Evidence::Tests(&["exits::"])),
    ("span: parent, trace context", Evidence::Tests(&["lineage::"])),
    (
        "cgroup",
        Evidence::Tests(&[
            "identity::cgroups_",
            "identity::a_deep_cgroup_",
            "filters::a_cgroup_",
            "uprobes::uprobe_only_the_allowed_cgroups",
        ]),
    ),
    ("namespaces, nested pid", Evidence::Tests(&["identity::all_eight_", "identity::a_process_in_a_nested_"])),
    (
        "user, session, terminal",
        Evidence::Tests(&["identity::real_", "identity::sessions_", "identity::the_controlling_"]),
    ),
    ("filters in the kernel", Evidence::Tests(&["filters::"])),
    ("uprobes", Evidence::Tests(&["uprobes::"])),
    ("losses counted", Evidence::Tests(&["losses::", "load::what_", "load::of_"])),
    ("kill at exec", Evidence::Check("guard_kill")),
    ("deny an exec (LSM)", Evidence::Tests(&["guard::guard_deny", "guard::guard_denies_"])),
    ("guard", Evidence::Tests(&["guard::"])),
    (LOAD, Evidence::Figure("load")),
];
const LOAD: &str = "load and attach, emulated";
const KERNEL: &str = "kernel";
const BEGIN: &str = "<!-- written by NAMESPAN_BLESS=1 make vm -->\n";
const END: &str = "<!-- end -->\n";

pub fn of(columns: &[(&Suite, Results)]) -> String {
    let mut table = String::from("| |");
    for (suite, _) in columns {
        write!(table, " {} |", suite.shown).unwrap();
    }
    table += "\n|---|";
    table += &"---|".repeat(columns.len());
    table += "\n";
    let mut row = |name: &str, cell: &dyn Fn(&Results) -> String| {
        let cells: Vec<_> = columns.iter().map(|(_, results)| cell(results)).collect();
        writeln!(table, "| {name} | {} |", cells.join(" | ")).unwrap();
    };
    row(KERNEL, &|results| results.release.clone());
    for (name, evidence) in &CAPABILITIES {
        row(name, &|results| evidence.cell(results));
    }
    table
}

impl Evidence {
    fn cell(&self, results: &Results) -> String {
        match self {
            Self::Tests(prefixes) => {
                let is_of = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
                let ran = results.tests.iter().filter(|test| is_of(&test.name) && test.outcome != Outcome::Ignored);
                let (passed, all) =
                    ran.fold((0, 0), |(passed, all), test| (passed + u32::from(test.outcome == Outcome::Ok), all + 1));
                let skipped = |test: &&Test| is_of(&test.name) && test.outcome == Outcome::Skipped;
                let reason = results.tests.iter().find(skipped).map(|test| test.reason.as_str());
                match (passed, all) {
                    (_, 0) => "not tested".to_owned(),
                    // Without figures, which each new test would change.
                    (passed, all) if passed == all => "yes".to_owned(),
                    (0, _) => format!("no: {}", reason.unwrap_or("every test failed")),
                    _ => format!("in part: {}", reason.unwrap_or("some tests failed")),
                }
            }
            Self::Check(name) => match results.checks.get(*name) {
                Some((status, _)) if status == "ok" => "yes".to_owned(),
                Some((_, found)) => format!("no: {found}"),
                None => "not checked".to_owned(),
            },
            Self::Figure(name) => results.measured.get(*name).cloned().unwrap_or_else(|| "not measured".to_owned()),
        }
    }
}

/// The table of the document is this one, figures and releases apart, as far as its columns are here; or, if that is wished
/// and all are, becomes it.
pub fn keep(document: &Path, table: &str) {
    let text = fs::read_to_string(document).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (kept, after) = rest.split_once(END).unwrap();
    if std::env::var_os("NAMESPAN_BLESS").is_some() {
        assert!(columns(table) >= columns(kept), "a kernel is missing: what {} says of it stays", document.display());
        fs::write(document, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
    } else {
        let compared = |text: &str| fixed(text, columns(table));
        assert_eq!(compared(table), compared(kept), "{}: NAMESPAN_BLESS=1 make vm rewrites it", document.display());
    }
}

fn columns(table: &str) -> usize {
    table.lines().next().map_or(0, |heads| heads.matches('|').count())
}

/// Of its first columns, the lines that no newer kernel and no other machine changes.
fn fixed(table: &str, columns: usize) -> Vec<String> {
    let is_fixed = |line: &&str| ![LOAD, KERNEL].iter().any(|name| line.starts_with(&format!("| {name} |")));
    let first = |line: &str| line.split('|').take(columns).collect::<Vec<_>>().join("|");
    table.lines().filter(is_fixed).map(first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_without_the_last_kernel_is_compared_by_the_others() {
        let whole = "| | one | sid |\n|---|---|---|\n| kernel | 1 | 2 |\n| exec | yes | no |\n";
        let part = "| | one |\n|---|---|\n| kernel | 3 |\n| exec | yes |\n";
        assert_eq!(fixed(part, columns(part)), fixed(whole, columns(part)));
        assert_ne!(fixed(&part.replace("yes", "no"), columns(part)), fixed(whole, columns(part)));
        assert_ne!(fixed(whole, columns(whole)), fixed(part, columns(whole)));
    }
}
