//! A run whose file of settings changes.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::namespan::Namespan;

const TAKEN_UP: &str = "settings are read anew, and taken up";
const REFUSED: &str = "settings are not taken up";

/// A file of settings, and the run that has it.
#[derive(Debug)]
pub struct Run {
    pub namespan: Namespan,
    /// How often settings were.
    pub taken_up: usize,
    refused: usize,
    file: PathBuf,
    _folder: TempDir,
}

impl Run {
    #[must_use]
    pub fn start(settings: &str) -> Self {
        Self::start_with(settings, &[])
    }

    #[must_use]
    pub fn start_with(settings: &str, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("namespan.yaml");
        fs::write(&file, settings).unwrap();
        let namespan = Namespan::run_with(&["--console", "none", "--config", file.to_str().unwrap()], environment);
        Self { namespan, taken_up: 0, refused: 0, file, _folder: folder }
    }

    /// As an editor does: never half a file.
    fn write(&self, settings: &str) {
        let mut new = tempfile::NamedTempFile::new_in(self.file.parent().unwrap()).unwrap();
        new.write_all(settings.as_bytes()).unwrap();
        new.persist(&self.file).unwrap();
    }

    /// By the signal; the file's watcher may be faster, and then the signal finds nothing new.
    pub fn change(&mut self, settings: &str) {
        self.write(settings);
        self.namespan.signal(Signal::HUP);
        self.taken_up += 1;
        self.namespan.wait_for_logs(TAKEN_UP, self.taken_up);
    }

    /// They are not taken up.
    pub fn be_refused(&mut self, settings: &str) {
        self.write(settings);
        self.namespan.signal(Signal::HUP);
        self.refused += 1;
        self.namespan.wait_for_logs(REFUSED, self.refused);
    }
}
