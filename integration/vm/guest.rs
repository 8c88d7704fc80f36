//! A virtual machine: it boots, tells its results on its second serial port, and powers itself off.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use namespan_integration::needs;

use crate::results::Results;

/// From its start to its end.
const PATIENCE: Duration = Duration::from_secs(45 * 60);
/// Of the console, where it ends without having ended.
const CONSOLE_LINES: usize = 60;
/// Debian leaves BPF out of the security modules that are on by default. What keeps processes from each other's secrets is slow
/// where processors are emulated.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 oops=panic lsm=lockdown,capability,bpf random.trust_cpu=on mitigations=off";

pub struct Machine {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

impl Machine {
    /// Its console and its results stay in a folder.
    pub fn run(&self, folder: &Path) -> Result<Results, String> {
        fs::create_dir_all(folder).unwrap();
        let [console, told] = ["console", "results"].map(|name| folder.join(name));
        for file in [&console, &told] {
            File::create(file).unwrap();
        }
        let mut command = Command::new(needs::qemu());
        // Where nested machines are, KVM may be there and hang.
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048", "-nodefaults"]);
        command.args(["-display", "none", "-no-reboot", "-append", COMMAND_LINE]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
        for file in [&console, &told] {
            command.arg("-serial").arg(format!("file:{}", file.display()));
        }
        let child = command.stdin(Stdio::null()).spawn().map_err(|error| format!("{command:?}: {error}"))?;
        let ended = ended(child);
        let told = fs::read_to_string(&told).map_err(|error| format!("{}: {error}", told.display()))?;
        let results = ended.and_then(|()| Results::parse(&told));
        results.map_err(|why| {
            let said: Vec<_> = told.lines().rev().take(5).collect();
            let said: Vec<_> = said.into_iter().rev().collect();
            format!("{why}; it told last:\n{}\nand its console:\n{}", said.join("\n"), tail(&console))
        })
    }
}

/// By itself, and in time.
fn ended(mut child: Child) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match child.try_wait().unwrap() {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("the machine: {status}")),
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                child.wait().unwrap();
                return Err(format!("not done in {PATIENCE:?}"));
            }
            None => std::thread::park_timeout(Duration::from_millis(100)),
        }
    }
}

fn tail(console: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(console).unwrap()).into_owned();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
}
