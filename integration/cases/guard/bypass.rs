//! Ways past policies by name, and which of the ready-made ones each of them meets.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use namespan_integration::docker::{Docker, docker};
use namespan_integration::image;
use namespan_integration::settings::Run;
use namespan_integration::sink::Sink;

use super::{Decision, KILLED, RAN, decisions, exec, ready, ready_made, settings};

/// What a shell that ran was told to end with.
const SHELL: i32 = 7;
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
/// In containers.
pub const TOOL: &str = "/bin/nstest-bypass";

/// A command, how it ends, and what is told of it: rule, executable, its origin, arguments.
struct Attempt {
    command: Vec<&'static str>,
    code: i32,
    told: Option<(&'static str, &'static str, &'static str, Vec<&'static str>)>,
}

/// These, and the rest of a shell's arguments.
fn shell(words: &[&'static str]) -> Vec<&'static str> {
    [words, &["-c", "exit 7"]].concat()
}

fn lives(words: &[&'static str], code: i32) -> Attempt {
    Attempt { command: words.to_vec(), code, told: None }
}

fn dies(
    words: &[&'static str],
    rule: &'static str,
    path: &'static str,
    origin: &'static str,
    arguments: &[&'static str],
) -> Attempt {
    Attempt { command: words.to_vec(), code: KILLED, told: Some((rule, path, origin, arguments.to_vec())) }
}

/// With shells that are programs of their own, scripts, the tool, and what all of them take.
pub fn image() -> Docker {
    let root = image::root();
    let inside = |path: &str| root.path().join(&path[1..]);
    for folder in ["/opt", "/usr", "/usr/bin"] {
        fs::create_dir(inside(folder)).unwrap();
    }
    let copies = [
        ("/bin/bash", "/bin/bash"),
        // To be renamed, and to be linked to: overlay copies what changes.
        ("/bin/bash", "/bin/zsh"),
        ("/bin/bash", "/bin/ksh"),
        ("/usr/bin/env", "/usr/bin/env"),
        (env!("CARGO_BIN_EXE_nstest-bypass"), TOOL),
    ];
    for (from, to) in copies {
        fs::copy(from, inside(to)).unwrap();
        image::add_libraries(root.path(), Path::new(from));
    }
    for name in ["ash", "other"] {
        symlink("/bin/busybox", inside(&format!("/opt/{name}"))).unwrap();
    }
    symlink("/bin/bash", inside("/opt/soft")).unwrap();
    let scripts =
        [("plain", "/bin/sh"), ("env", "/usr/bin/env sh"), ("applet", "/bin/busybox sh"), ("sh", "/bin/busybox")];
    for (name, interpreter) in scripts {
        let script = inside(&format!("/opt/script-{name}"));
        let script = if name == "sh" { script.with_file_name("sh") } else { script };
        fs::write(&script, format!("#!{interpreter}\nexit 7\n")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    }
    Docker::of(root.path())
}

/// A container with what can only be made in it, before there is a guard.
fn container(image: &Docker) -> String {
    let name = image.name("bypass");
    docker(&["run", "--detach", "--tmpfs", "/mnt:exec", "--name", &name, &image.tagged(), "/bin/sleep", "1000000"]);
    for words in [
        &["cp", "/bin/bash", "/opt/copied"][..],
        &["cp", "/bin/bash", "/mnt/mounted"],
        &["mv", "/bin/zsh", "/opt/renamed"],
        &["ln", "/bin/ksh", "/opt/hard"],
    ] {
        docker(&[&["exec", &name, "/bin/busybox"], words].concat());
    }
    name
}

/// Under a ready-made policy.
fn attempt(policy: &str, attempts: &[Attempt]) {
    attempt_by(&ready_made(policy), attempts);
}

/// Makes each attempt under a file's policy; of every one that it stops there is one record, and there are no others.
fn attempt_by(file: &str, attempts: &[Attempt]) {
    let image = image();
    let sink = Sink::start();
    let name = container(&image);
    let guard = format!("  budget: {{kills: 1000}}\n  files: ['{file}']\n");
    let run = Run::start(&settings(&sink, "enforce", &guard));
    let ends: Vec<_> = attempts.iter().map(|attempt| (&attempt.command, exec(&name, &attempt.command))).collect();
    let finished = run.namespan.stop().shipped_all();
    let wanted: Vec<_> = attempts.iter().map(|attempt| (&attempt.command, attempt.code)).collect();
    assert_eq!(ends, wanted);
    let told: Vec<_> = attempts.iter().filter_map(|attempt| attempt.told.as_ref()).map(decision).collect();
    assert_eq!(decisions(&sink, &name), told);
    let guard = finished.summary.guard.unwrap();
    let count = told.len() as u64;
    assert_eq!(
        (guard.decided, guard.killed, guard.told, guard.dropped),
        (count, count, count, 0),
        "{}",
        finished.stderr
    );
}

fn decision((rule, path, origin, arguments): &(&str, &str, &str, Vec<&str>)) -> Decision {
    Decision {
        result: "killed".to_owned(),
        rule: (*rule).to_owned(),
        path: (*path).to_owned(),
        origin: (*origin).to_owned(),
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
    }
}

#[test]
fn shells_are_known_by_what_the_kernel_resolved() {
    if !ready() {
        return;
    }
    let bash = |words: &[&'static str], arguments: &[&'static str]| {
        dies(&shell(words), "match[0]", "/bin/bash", "image", &shell(arguments))
    };
    let applet = |words: &[&'static str], rule, arguments: &[&'static str]| {
        dies(&shell(words), rule, "/bin/busybox", "image", &shell(arguments))
    };
    let script = |path, rule, arguments: &[&'static str]| dies(&[path], rule, "/bin/busybox", "image", arguments);
    attempt(
        "no-shells-in-containers",
        &[
            bash(&["/bin/bash"], &["/bin/bash"]),
            bash(&["/opt/soft"], &["/opt/soft"]),
            bash(&["/opt/../bin/./bash"], &["/opt/../bin/./bash"]),
            // By what it is told to call itself.
            bash(&[TOOL, "as", "/bin/bash", "ls"], &["ls"]),
            bash(&[TOOL, "as", "/bin/bash", ""], &[""]),
            bash(&[TOOL, "fd", "/bin/bash", "ls"], &["ls"]),
            applet(&["/bin/sh"], "match[1]", &["/bin/sh"]),
            applet(&["/opt/ash"], "match[1]", &["/opt/ash"]),
            applet(&[TOOL, "as", "/bin/busybox", "-/x/sh"], "match[1]", &["-/x/sh"]),
            applet(&[TOOL, "fd", "/bin/busybox", "sh"], "match[1]", &["sh"]),
            applet(&["/bin/busybox", "sh"], "match[2]", &["/bin/busybox", "sh"]),
            applet(&["/bin/busybox", "/x/ash"], "match[2]", &["/bin/busybox", "/x/ash"]),
            applet(&[TOOL, "as", "/bin/busybox", "busybox-ls", "sh"], "match[2]", &["busybox-ls", "sh"]),
            // An applet that executes one.
            applet(&["/bin/busybox", "env", "sh"], "match[1]", &["sh"]),
            dies(&shell(&[LOADER, "/bin/bash"]), "match[3]", LOADER, "image", &shell(&[LOADER, "/bin/bash"])),
            script("/opt/script-plain", "match[1]", &["/bin/sh", "/opt/script-plain"]),
            script("/opt/script-env", "match[1]", &["sh", "/opt/script-env"]),
            script("/opt/script-applet", "match[2]", &["/bin/busybox", "sh", "/opt/script-applet"]),
            // A script that is named as the applet, which is what busybox then goes by.
            script("/opt/sh", "match[2]", &["/bin/busybox", "/opt/sh"]),
            // Who runs a program by the name of none is no shell.
            lives(&[TOOL, "as", "/bin/busybox", "ls", "/"], 0),
            lives(&["/opt/other"], RAN),
            // Another name is another program to a policy by names.
            lives(&shell(&["/opt/renamed"]), SHELL),
            lives(&shell(&["/opt/hard"]), SHELL),
            lives(&shell(&["/opt/copied"]), SHELL),
            lives(&shell(&["/mnt/mounted"]), SHELL),
            lives(&shell(&[TOOL, "memfd", "/bin/bash", "bash"]), SHELL),
            lives(&shell(&[TOOL, "deleted", "/bin/bash", "/opt/gone", "bash"]), SHELL),
        ],
    );
}

#[test]
fn an_argument_of_any_length_before_it_hides_nothing() {
    /// Around what the kernel side reads at once.
    const LENGTHS: [usize; 5] = [4096, 32_766, 32_767, 32_768, 100_000];
    if !ready() {
        return;
    }
    let image = image();
    let sink = Sink::start();
    let name = container(&image);
    let files = format!("  files: ['{}']\n", ready_made("no-shells-in-containers"));
    let run = Run::start(&settings(&sink, "enforce", &files));
    for length in LENGTHS {
        // Busybox takes whatever begins so for itself.
        let zeroth = "busybox".to_owned() + &"x".repeat(length - "busybox".len());
        assert_eq!(exec(&name, &[TOOL, "as", "/bin/busybox", &zeroth, "sh", "-c", "exit 7"]), KILLED, "{length}");
    }
    assert!(run.namespan.stop().shipped_all().status.success());
    let told = decisions(&sink, &name);
    assert_eq!(told.len(), LENGTHS.len());
    // By one of the rules for applets.
    assert!(told.iter().all(|told| told.path == "/bin/busybox" && told.rule != "match[0]"), "{told:?}");
}

/// `argv1` is an option then, by which nobody knows what it loads.
#[test]
fn a_loader_with_options_is_stopped_by_who_forbids_loaders() {
    if !ready() {
        return;
    }
    let with = |options: &[&'static str]| {
        let words = shell(&[&[LOADER], options, &["/bin/bash"]].concat());
        dies(&words, "match[0]", LOADER, "image", &words)
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("no-loaders.yaml");
    let policy = "policies: [{name: no-loaders, action: kill, scope: {containers: all}, match: [{name: [ld-linux*]}]}]";
    fs::write(&file, policy).unwrap();
    attempt_by(
        file.to_str().unwrap(),
        &[
            with(&[]),
            with(&["--inhibit-cache"]),
            with(&["--library-path", "/lib"]),
            with(&["--argv0", "ls"]),
            // What has a loader is no loader.
            lives(&shell(&["/bin/bash"]), SHELL),
        ],
    );
}

#[test]
fn what_was_not_in_the_image_is_known_by_where_it_lies() {
    if !ready() {
        return;
    }
    let other = |words: &[&'static str], path, origin, arguments: &[&'static str]| {
        dies(&shell(words), "match[0]", path, origin, &shell(arguments))
    };
    attempt(
        "only-from-the-image",
        &[
            other(&["/opt/renamed"], "/opt/renamed", "changed", &["/opt/renamed"]),
            other(&["/opt/hard"], "/opt/hard", "changed", &["/opt/hard"]),
            other(&["/opt/copied"], "/opt/copied", "changed", &["/opt/copied"]),
            other(&["/mnt/mounted"], "/mnt/mounted", "mounted", &["/mnt/mounted"]),
            other(&[TOOL, "fd", "/opt/copied", "ls"], "/opt/copied", "changed", &["ls"]),
            other(&[TOOL, "as", "/opt/copied", "/bin/ls"], "/opt/copied", "changed", &["/bin/ls"]),
            other(&[TOOL, "memfd", "/bin/bash", "bash"], "/memfd:memory", "memfd", &["bash"]),
            other(&[TOOL, "deleted", "/bin/bash", "/opt/gone", "bash"], "/opt/gone", "deleted", &["bash"]),
            lives(&shell(&["/bin/bash"]), SHELL),
            lives(&shell(&["/opt/soft"]), SHELL),
            lives(&shell(&["/bin/sh"]), SHELL),
            lives(&shell(&[LOADER, "/bin/bash"]), SHELL),
            lives(&["/opt/script-env"], SHELL),
            // The loader is of the image, and nothing else is executed.
            lives(&shell(&[LOADER, "/opt/copied"]), SHELL),
        ],
    );
}

#[test]
fn what_is_executed_from_memory_is_known_by_that() {
    if !ready() {
        return;
    }
    let gone = |words: &[&'static str], path, origin| dies(&shell(words), "match[0]", path, origin, &shell(&["bash"]));
    attempt(
        "no-memfd",
        &[
            gone(&[TOOL, "memfd", "/bin/bash", "bash"], "/memfd:memory", "memfd"),
            gone(&[TOOL, "deleted", "/bin/bash", "/opt/gone", "bash"], "/opt/gone", "deleted"),
            gone(&[TOOL, "deleted", "/bin/bash", "/mnt/gone", "bash"], "/mnt/gone", "deleted"),
            lives(&shell(&["/opt/copied"]), SHELL),
            lives(&shell(&["/mnt/mounted"]), SHELL),
            lives(&shell(&["/bin/bash"]), SHELL),
        ],
    );
}
