//! SIGHUP, or a file that has changed, in; settings to take up out, if they are valid and can be taken up while running.

use std::convert::Infallible;
use std::fs;
use std::future::pending;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use crate::cli;
use crate::config::{Config, ConfigError};
use crate::pipeline::{Reload, ReloadError};

/// How often the file is looked at. What it says counts once it has stayed the same from one look to the next: whoever
/// writes it may not have finished.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Error)]
enum Refusal {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{} can't change while Namespan runs: restart it, or take the change back", .0.join(", "))]
    Fixed(Vec<&'static str>),
    #[error(transparent)]
    Reload(#[from] ReloadError),
    /// The pipeline has ended.
    #[error("Namespan is shutting down")]
    Ended,
}

/// What may be asked for anew.
pub struct Settings<'a> {
    flags: &'a cli::Run,
    current: Config,
    reloads: mpsc::Sender<Reload>,
    /// `None`: SIGHUP means something else.
    hangups: Option<Signal>,
}

impl<'a> Settings<'a> {
    #[must_use]
    pub fn new(flags: &'a cli::Run, current: Config, reloads: mpsc::Sender<Reload>, hangups: Option<Signal>) -> Self {
        Self { flags, current, reloads, hangups }
    }

    /// Follows every change. `taken_up` is told of what is to be done outside of the pipeline.
    pub async fn follow(mut self, taken_up: impl Fn(&Config)) -> Infallible {
        let mut watched = Watched::new(self.files());
        loop {
            let why = tokio::select! {
                () = next(&mut self.hangups) => {
                    watched.take_as_it_is();
                    "SIGHUP"
                }
                () = watched.changed() => "a file has changed",
            };
            match self.reload().await {
                Ok(true) => {
                    tracing::info!(why, "settings are read anew, and taken up");
                    taken_up(&self.current);
                    watched.follow(self.files());
                }
                Ok(false) => tracing::info!(why, "settings are read anew; nothing has changed"),
                Err(error) => tracing::error!(why, "settings are not taken up, the old ones stay: {error}"),
            }
        }
    }

    /// What the settings were read from: ours, and those of policies.
    fn files(&self) -> Vec<PathBuf> {
        self.flags.config.iter().chain(&self.current.guard.sources).cloned().collect()
    }

    /// Whether anything has changed.
    async fn reload(&mut self) -> Result<bool, Refusal> {
        let config = match self.read() {
            Ok(Some(config)) => config,
            Ok(None) => {
                self.tell(Reload::Unchanged).await?;
                return Ok(false);
            }
            Err(refusal) => {
                self.tell(Reload::Refused).await?;
                return Err(refusal);
            }
        };
        let (done, outcome) = oneshot::channel();
        self.tell(Reload::Settings(Box::new(config.clone()), done)).await?;
        outcome.await.map_err(|_| Refusal::Ended)??;
        self.current = config;
        Ok(true)
    }

    /// `None`: nothing has changed.
    fn read(&self) -> Result<Option<Config>, Refusal> {
        let config = Config::load(self.flags, &|name| std::env::var_os(name))?;
        let fixed = self.current.needs_restart(&config);
        if fixed.is_empty() { Ok((config != self.current).then_some(config)) } else { Err(Refusal::Fixed(fixed)) }
    }

    async fn tell(&self, reload: Reload) -> Result<(), Refusal> {
        self.reloads.send(reload).await.map_err(|_| Refusal::Ended)
    }
}

/// Never, without the signal.
async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => pending().await,
    }
}

/// Files, by what changes with their content, also where one is replaced as a whole.
struct Watched {
    files: Vec<File>,
}

struct File {
    path: PathBuf,
    /// As it was taken for granted last.
    known: Option<Stamp>,
    /// As it was at the last look.
    last: Option<Stamp>,
}

type Stamp = (u64, u64, i64, i64, u64);

impl File {
    fn new(path: PathBuf) -> Self {
        let stamp = stamp(&path);
        Self { path, known: stamp, last: stamp }
    }

    /// Whether the file is another, and has been since the last look. One that is gone has not changed: it may be about to
    /// be replaced.
    fn look(&mut self) -> bool {
        let now = stamp(&self.path);
        let is_settled = now == self.last;
        self.last = now;
        let has_changed = is_settled && now.is_some() && now != self.known;
        if has_changed {
            self.known = now;
        }
        has_changed
    }
}

impl Watched {
    fn new(paths: Vec<PathBuf>) -> Self {
        Self { files: paths.into_iter().map(File::new).collect() }
    }

    /// From now on these; what was known of one stays.
    fn follow(&mut self, paths: Vec<PathBuf>) {
        let mut known = std::mem::take(&mut self.files);
        self.files = paths
            .into_iter()
            .map(|path| match known.iter().position(|file| file.path == path) {
                Some(index) => known.swap_remove(index),
                None => File::new(path),
            })
            .collect();
    }

    /// What they say now is known.
    fn take_as_it_is(&mut self) {
        for file in &mut self.files {
            file.known = stamp(&file.path);
            file.last = file.known;
        }
    }

    /// Never, without files.
    async fn changed(&mut self) {
        if self.files.is_empty() {
            return pending().await;
        }
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if self.look() {
                return;
            }
        }
    }

    /// Whether any has changed; each is looked at.
    fn look(&mut self) -> bool {
        self.files.iter_mut().filter_map(|file| file.look().then_some(())).count() > 0
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let of = fs::metadata(path).ok()?;
    Some((of.dev(), of.ino(), of.mtime(), of.mtime_nsec(), of.size()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_change_counts_once_it_has_settled_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("namespan.yaml");
        fs::write(&path, "a").unwrap();
        let other = folder.path().join("policies.yaml");
        fs::write(&other, "a").unwrap();
        let mut watched = Watched::new(vec![path.clone(), other.clone()]);
        let mut looks = |times: usize| (0..times).map(|_| watched.look()).collect::<Vec<_>>();
        assert_eq!(looks(2), [false, false]);
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"b").unwrap();
        assert_eq!(looks(4), [false, true, false, false]);
        fs::remove_file(&path).unwrap();
        assert_eq!(looks(3), [false, false, false]);
        // As a ConfigMap is: another file of the same name.
        fs::write(folder.path().join("new"), "ab").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(looks(3), [false, true, false]);
        fs::write(&other, "abc").unwrap();
        assert_eq!(looks(3), [false, true, false]);
        watched.follow(vec![path]);
        fs::write(&other, "abcd").unwrap();
        assert_eq!([watched.look(), watched.look()], [false, false]);
    }
}
