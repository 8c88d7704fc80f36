//! Execs of the smallest program there is, as fast as both cores can or at a given rate.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// One on each core of the machine that the targets are for.
const WORKERS: u32 = 2;
/// Its comm, by which it is counted in other tools' output.
pub const NAME: &str = "nsbench-tiny";

/// A program that does nothing, and whoever runs it.
pub struct Storm {
    path: PathBuf,
    _directory: TempDir,
}

impl Storm {
    pub fn new() -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("nsbench-").tempdir()?;
        let path = directory.path().join(NAME);
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&path)?.write_all(&tiny())?;
        Ok(Self { path, _directory: directory })
    }

    pub fn program(&self) -> &Path {
        &self.path
    }

    /// So many execs as fast as can be, on all cores; how long they took.
    pub fn rage(&self, execs: u32) -> io::Result<Duration> {
        let began = Instant::now();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| self.run(execs / WORKERS))).collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(io::Error::other("a worker panicked"))))
        })?;
        Ok(began.elapsed())
    }

    /// So many execs, spread evenly over the time.
    pub fn drizzle(&self, execs: u32, time: Duration) -> io::Result<()> {
        let began = Instant::now();
        for exec in 0..execs {
            if let Some(early) = (time / execs * exec).checked_sub(began.elapsed()) {
                crate::pause(early);
            }
            self.run(1)?;
        }
        Ok(())
    }

    /// One after the other. The standard library uses `posix_spawn` here, which is a `vfork` and an `execve`.
    fn run(&self, execs: u32) -> io::Result<()> {
        for _ in 0..execs {
            let status = Command::new(&self.path).stdin(Stdio::inherit()).status()?;
            if !status.success() {
                return Err(io::Error::other(format!("{}: {status}", self.path.display())));
            }
        }
        Ok(())
    }
}

/// A static executable of one page: `exit(0)`.
fn tiny() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u16 = 64 + 56;
    #[cfg(target_arch = "x86_64")]
    const CODE: (u16, &[u8]) = (62, &[0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]);
    #[cfg(target_arch = "aarch64")]
    const CODE: (u16, &[u8]) = (183, &[0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 1, 0, 0, 0xd4]);

    let (machine, code) = CODE;
    let len = u64::from(HEADERS) + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |elf: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|value| elf.extend(value.to_le_bytes()));
    let word = |elf: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|value| elf.extend(value.to_le_bytes()));
    let long = |elf: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|value| elf.extend(value.to_le_bytes()));
    half(&mut elf, &[2, machine]); // ET_EXEC
    word(&mut elf, &[1]);
    long(&mut elf, &[BASE + u64::from(HEADERS), 64, 0]); // entry, program headers, no sections
    word(&mut elf, &[0]);
    half(&mut elf, &[64, 56, 1, 64, 0, 0]);
    word(&mut elf, &[1, 5]); // PT_LOAD, readable and executable
    long(&mut elf, &[0, BASE, BASE, len, len, 0x1000]);
    elf.extend_from_slice(code);
    elf
}
