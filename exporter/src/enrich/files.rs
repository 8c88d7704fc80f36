//! What runtimes leave on disk: folders that change come in, updates go out. Containers are named without any socket,
//! in time for their first exec: each of the runtimes writes it down before it makes the container's first process.

mod containerd;
mod docker;
mod folder;
mod forest;
mod known;
mod layout;
mod oci;
mod process;
mod storage;
mod users;
mod watches;

use std::convert::Infallible;
use std::io;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::container::Labels;
use super::runtime::{Line, Lost, Runtime};
use forest::Forest;

pub use containerd::Containerd;
pub use docker::Docker;
pub use layout::Layout;
pub use storage::Storage;
pub use users::Users;

/// How often processes are looked after whose end no file tells of.
const CHECK: Duration = Duration::from_secs(2);
/// Users can make as much work as they like: beyond the first moments of it, so many times as long is rested.
const REST: u32 = 4;
const MOMENTS: Duration = Duration::from_millis(250);

/// Containers of one runtime, by its files.
pub struct Files {
    runtime: &'static str,
    place: String,
    of_users: bool,
    forest: Forest,
    /// It has been said that there is no folder: from now on it is waited for.
    absence_told: bool,
}

impl Files {
    /// The containers of root, at most so many of them.
    #[must_use]
    pub fn new(layout: impl Layout + 'static, labels: Labels, capacity: NonZeroUsize) -> Self {
        let (runtime, place) = (layout.runtime(), layout.place());
        let forest = Forest::new(labels, capacity).of(Box::new(layout));
        Self { runtime, place, of_users: false, forest, absence_told: false }
    }

    /// The containers that users run with Podman: of those who are logged in, and of those whose containers are asked for.
    #[must_use]
    pub fn of_users(users: Users, labels: Labels, capacity: NonZeroUsize) -> Self {
        let place = users.run.display().to_string();
        let forest = Forest::new(labels, capacity).of_users(users);
        Self { runtime: "podman", place, of_users: true, forest, absence_told: false }
    }

    async fn watch(&mut self, line: &mut Line) -> Result<Infallible, Lost> {
        let broken = |error: io::Error| Lost::Runtime(error.to_string());
        let ears = self.forest.listen().map_err(broken)?;
        #[expect(
            deprecated,
            reason = "the successor is unsafe, for types that may close their descriptor early; ours can't"
        )]
        let ears = AsyncFd::with_interest(ears, Interest::READABLE).map_err(broken)?;
        self.forest.refresh();
        if !self.forest.is_there() && !std::mem::replace(&mut self.absence_told, true) {
            return Err(Lost::Absent(format!("{} is not there", self.place)));
        }
        let mut connected = false;
        let mut work = Work { done: Duration::ZERO, at: Instant::now() };
        let mut check = interval(CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            for update in self.forest.take_updates() {
                line.tell(update).await?;
            }
            if !connected && self.forest.is_there() {
                connected = true;
                line.connected().await?;
            }
            let began = tokio::select! {
                ready = ears.readable() => {
                    let began = Instant::now();
                    let mut ready = ready.map_err(broken)?;
                    if self.forest.hear() {
                        ready.clear_ready();
                    }
                    began
                }
                lookup = line.lookups.recv() => {
                    let began = Instant::now();
                    self.forest.look_up(&lookup.ok_or(Lost::Listener)?);
                    began
                }
                _ = check.tick() => {
                    let began = Instant::now();
                    self.forest.check();
                    began
                }
            };
            if self.of_users {
                sleep(work.rest(began, Instant::now())).await;
            }
        }
    }
}

/// Work that is not made up for by rest.
struct Work {
    done: Duration,
    at: Instant,
}

impl Work {
    /// How long to rest after some work.
    fn rest(&mut self, began: Instant, ended: Instant) -> Duration {
        let rested = began.saturating_duration_since(self.at) / REST;
        self.done = self.done.saturating_sub(rested) + ended.saturating_duration_since(began);
        self.at = ended;
        self.done.saturating_sub(MOMENTS) * REST
    }
}

#[async_trait]
impl Runtime for Files {
    fn name(&self) -> &'static str {
        self.runtime
    }

    fn place(&self) -> String {
        self.place.clone()
    }

    async fn session(&mut self, line: &mut Line) -> Lost {
        let lost = match self.watch(line).await {
            Ok(never) => match never {},
            Err(lost) => lost,
        };
        for update in self.forest.take_updates() {
            if line.tell(update).await.is_err() {
                return Lost::Listener;
            }
        }
        lost
    }

    fn answers_for(&self) -> &'static [&'static str] {
        match self.runtime {
            _ if self.of_users => &[super::ROOTLESS],
            // cri-dockerd's containers may look like containerd's.
            "docker" => &["docker", "containerd"],
            "containerd" => &["containerd", super::ANY_PATH],
            "cri-o" => &["cri-o"],
            _ => &["podman"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_makes_much_work_is_waited_for_and_nobody_else() {
        let mut now = Instant::now();
        let mut work = Work { done: Duration::ZERO, at: now };
        let mut after = |idle: Duration, busy: Duration| {
            let (began, ended) = (now + idle, now + idle + busy);
            now = ended;
            work.rest(began, ended)
        };
        let busy = MOMENTS / 50;
        assert!((0..1000).all(|_| after(busy * REST, busy).is_zero()));
        assert!((0..40).all(|_| after(Duration::ZERO, busy).is_zero()));
        let mut rest = Duration::ZERO;
        for _ in 0..1000 {
            rest = after(rest, busy);
        }
        assert_eq!(rest, busy * REST);
    }
}
