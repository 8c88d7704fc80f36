//! A terminal at which somebody types.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, Command};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::PATIENCE;
use crate::watched::Watched;

/// A pseudo terminal, with a program at its other side.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    screen: Arc<Watched<Vec<u8>>>,
    process: Child,
}

impl Terminal {
    #[must_use]
    pub fn start(mut command: Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let flags = OFlags::NOCTTY.bits().cast_signed();
        let side = || OpenOptions::new().read(true).write(true).custom_flags(flags).open(&name).unwrap();
        let process = command.stdin(side()).stdout(side()).stderr(side()).spawn();
        let process = process.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        // It has the other side open, which would never be seen to end.
        drop(command);
        let keyboard = File::from(master);
        let mut output = keyboard.try_clone().unwrap();
        let screen = Arc::new(Watched::<Vec<u8>>::default());
        let shown = screen.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // An error is the end, when nobody has the other side.
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                shown.change(|screen| screen.extend_from_slice(&bytes[..count]));
            }
        });
        Self { keyboard, screen, process }
    }

    /// Types a line, and waits until this is shown once more than before.
    pub fn line(&mut self, line: &str, then: &str) {
        let before = self.times(then);
        write!(self.keyboard, "{line}\r").unwrap();
        self.wait_for(then, before + 1);
    }

    /// Waits until this has been shown so often.
    pub fn wait_for(&self, text: &str, times: usize) {
        let found = self.screen.wait(PATIENCE, |screen| (count(screen, text) >= times).then_some(()));
        assert!(found.is_some(), "not shown {times} times: {text:?}, but\n{}", self.shown());
    }

    /// Types a line, after which the program ends.
    pub fn last_line(mut self, line: &str) {
        write!(self.keyboard, "{line}\r").unwrap();
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{status}:\n{}", self.shown());
    }

    fn times(&self, text: &str) -> usize {
        count(&self.screen.lock(), text)
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock()).into_owned()
    }
}

fn count(screen: &[u8], text: &str) -> usize {
    String::from_utf8_lossy(screen).matches(text).count()
}
