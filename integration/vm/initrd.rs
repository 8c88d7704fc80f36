//! What a machine boots into: busybox, the binaries under test, what their tests start, and the shared libraries of all.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Suite, TESTS};

/// What tests start that busybox has not, or not as they need it.
const PROGRAMS: [&str; 13] = [
    "bash", "env", "mount", "nm", "perl", "readelf", "script", "setpriv", "setsid", "sh", "umount", "unshare", "chroot",
];
/// Of a machine whose processors are emulated, as its tests are told.
const SLOWNESS: u32 = 10;
/// Of one test.
const TIMEOUT_SECONDS: u32 = 300;

/// The archive, which is the same for each kernel.
pub fn build(scratch: &Path, kernels: &Path, suites: &[&Suite], filter: Option<&str>) -> PathBuf {
    let root = scratch.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).unwrap();
    }
    for directory in ["etc", "tests", "usr/bin"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    // As here, or a program would not be where others look for it.
    for directory in ["bin", "sbin", "lib", "lib64"] {
        if let Ok(target) = fs::read_link(Path::new("/").join(directory)) {
            fs::create_dir_all(root.join(&target)).unwrap();
            symlink(target, root.join(directory)).unwrap();
        } else {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
    }
    let built = binaries(filter);
    let mut files: BTreeSet<_> = PROGRAMS.iter().map(|name| in_path(name)).collect();
    files.extend(built.tests.iter().chain([&built.namespan]).cloned());
    let needed: Vec<_> = files.iter().flat_map(|file| libraries(file)).collect();
    files.extend(needed);
    for file in &files {
        put(file, &root.join(file.strip_prefix("/").unwrap()));
    }
    for strippable in built.tests.iter().chain([&built.namespan]) {
        let copy = root.join(strippable.strip_prefix("/").unwrap());
        succeeds(Command::new("strip").arg(copy));
    }
    put(Path::new("/bin/busybox"), &root.join("bin/busybox"));
    put(&Path::new(env!("CARGO_MANIFEST_DIR")).join("vm/init"), &root.join("init"));
    for suite in suites {
        let kernel = kernels.join(suite.name);
        let release = fs::read_to_string(kernel.join("release")).unwrap();
        let modules = root.join("lib/modules").join(release.trim());
        fs::create_dir_all(&modules).unwrap();
        for module in fs::read_dir(kernel.join("modules")).unwrap() {
            let module = module.unwrap();
            put(&module.path(), &modules.join(module.file_name()));
        }
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\ntty:x:5:\n").unwrap();
    // The test's own helper: what it compiles here is for the machine, which has no compiler.
    succeeds(
        Command::new(&built.tests[0]).arg(root.join("tests")).env("NAMESPAN_KERNEL_TEST_HELPER", "build_programs"),
    );
    fs::write(root.join("environment"), environment(&built, filter)).unwrap();
    archive(&root, &scratch.join("initrd"))
}

struct Built {
    namespan: PathBuf,
    tests: Vec<PathBuf>,
}

/// As cargo builds and names them.
fn binaries(filter: Option<&str>) -> Built {
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--workspace", "--locked", "--no-run", "--message-format=json-render-diagnostics"]);
    // Emulated processors are slow enough. Building takes longer, which a few tests alone are not worth.
    if filter.is_none() {
        command.args(["--config", "profile.dev.package.namespan.opt-level=1"]).env("CARGO_INCREMENTAL", "0");
    }
    for test in TESTS {
        command.args(["--test", test]);
    }
    // What cargo told us of ourselves would have some packages built anew.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|own| name.to_string_lossy().starts_with(own)) {
            command.env_remove(name);
        }
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut namespan, mut tests) = (None, Vec::new());
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let message: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        let Some(executable) = message["executable"].as_str().map(PathBuf::from) else { continue };
        let name = message["target"]["name"].as_str().unwrap();
        if TESTS.contains(&name) {
            tests.push(executable);
        } else if name == "namespan" {
            namespan = Some(executable);
        }
    }
    assert!(child.wait().unwrap().success(), "the tests do not build");
    assert_eq!(tests.len(), TESTS.len());
    Built { namespan: namespan.unwrap(), tests }
}

/// What `init` reads.
fn environment(built: &Built, filter: Option<&str>) -> String {
    let tests: Vec<_> = built.tests.iter().map(|test| test.to_str().unwrap()).collect();
    let mut text = String::new();
    for (name, value) in [
        ("NAMESPAN_BIN", built.namespan.to_str().unwrap()),
        ("NAMESPAN_KERNEL_TEST_PROGRAMS", "/tests"),
        ("NAMESPAN_REQUIRE_ALL", "1"),
        // Every machine is booted with BPF among its security modules.
        ("NAMESPAN_REQUIRE_LSM", "1"),
        ("NAMESPAN_TEST_SLOWNESS", &SLOWNESS.to_string()),
        ("TEST_FILTER", filter.unwrap_or("")),
        ("TEST_TIMEOUT", &TIMEOUT_SECONDS.to_string()),
        ("TESTS", &tests.join(" ")),
    ] {
        writeln!(text, "export {name}='{value}'").unwrap();
    }
    text
}

fn in_path(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // The superuser's programs are not in everybody's path.
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = places.map(|place| place.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed (run .ci/test-deps)"))
}

/// The shared libraries and the loader, by the paths by which they are looked for.
fn libraries(binary: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(binary).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("not found"), "{}: {text}", binary.display());
    let words = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from).collect()
}

/// The content, whatever links lead to it.
fn put(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let copied = fs::copy(from, to);
    copied.unwrap_or_else(|error| panic!("{} to {}: {error}", from.display(), to.display()));
    let mode = fs::metadata(to).unwrap().permissions().mode() | 0o600;
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).unwrap();
}

fn archive(root: &Path, file: &Path) -> PathBuf {
    let pack = r#"find . | LC_ALL=C sort | cpio --quiet --create --format=newc --owner=0:0 > "$0""#;
    succeeds(Command::new("sh").args(["-e", "-c", pack]).arg(file).current_dir(root));
    file.to_owned()
}

fn succeeds(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
