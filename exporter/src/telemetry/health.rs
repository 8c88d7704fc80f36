//! How the pipeline and its destinations do: whether we are alive, and what stands in the way of being ready.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::{Shared, lock, name_of};
use crate::config::Signal;
use crate::ship;

/// The pipeline is heard of every second; it takes much to keep it from that for so long.
const ALIVE: Duration = Duration::from_secs(5);

/// Characters of what is said of one thing.
const LINE: usize = 300;

/// What has to be well for us to be ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// The programs are detached, and what is left is drained.
    pub stopping: bool,
    /// Runtimes that should tell of their containers and do not, with the reason.
    pub degraded: Vec<String>,
    /// What uprobes' thread is at for too long, and since when.
    pub busy: Option<(Duration, String)>,
    pub deliveries: Vec<Delivery>,
}

/// How one signal gets to one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub destination: String,
    pub signal: Signal,
    pub state: State,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing has been sent yet.
    #[default]
    Untried,
    Delivering,
    /// Sent again and again; nothing is lost yet.
    Failing {
        reason: String,
    },
    Losing {
        reason: String,
    },
    /// It takes nothing of the signal.
    Refused {
        reason: String,
    },
}

impl State {
    pub(super) const NAMES: [&str; 5] = ["untried", "delivering", "failing", "losing", "refused"];

    /// As attributes have it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        let [untried, delivering, failing, losing, refused] = Self::NAMES;
        match self {
            Self::Untried => untried,
            Self::Delivering => delivering,
            Self::Failing { .. } => failing,
            Self::Losing { .. } => losing,
            Self::Refused { .. } => refused,
        }
    }
}

impl From<ship::Delivery> for State {
    fn from(delivery: ship::Delivery) -> Self {
        match delivery {
            ship::Delivery::Untried => Self::Untried,
            ship::Delivery::Delivering => Self::Delivering,
            ship::Delivery::Failing { reason, .. } => Self::Failing { reason },
            ship::Delivery::Losing { reason, .. } => Self::Losing { reason },
            ship::Delivery::Refused { reason, .. } => Self::Refused { reason },
        }
    }
}

impl Condition {
    /// What is not as it should be, in a few words each; empty: ready.
    #[must_use]
    pub fn obstacles(&self) -> Vec<String> {
        let mut obstacles = Vec::new();
        if self.stopping {
            obstacles.push("not attached: stopping".to_owned());
        }
        obstacles.extend(self.degraded.iter().map(|runtime| format!("not attributing: {runtime}")));
        if let Some((since, with)) = &self.busy {
            obstacles.push(format!("not probing: busy since {} s with {with}", since.as_secs()));
        }
        for Delivery { destination, signal, state } in &self.deliveries {
            match state {
                State::Untried | State::Delivering => {}
                State::Failing { reason } | State::Losing { reason } | State::Refused { reason } => {
                    let (signal, state) = (name_of(*signal), state.name());
                    obstacles.push(format!("not delivering {signal} to {destination}: {state}: {reason}"));
                }
            }
        }
        // A reason may come from elsewhere, and is to be no more than the rest of a line.
        let line = |text: String| text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LINE).collect();
        obstacles.into_iter().map(line).collect()
    }
}

/// An answer to whoever asks: whether all is well, and what is to be said, a line for each thing.
pub(super) type Answer = (bool, String);

/// Whether the pipeline goes on.
pub(super) fn alive(shared: &Shared, now: Instant) -> Answer {
    let silent = now.saturating_duration_since(*lock(&shared.alive));
    // The drain has a deadline of its own.
    if silent < ALIVE || lock(&shared.condition).stopping {
        (true, "alive\n".to_owned())
    } else {
        (false, format!("not alive: the pipeline has made no progress for {} s\n", silent.as_secs()))
    }
}

/// Whether what happens is seen, attributed and delivered.
pub(super) fn ready(shared: &Shared, now: Instant) -> Answer {
    let condition = lock(&shared.condition);
    let obstacles = condition.obstacles();
    drop(condition);
    let (alive, why_not) = alive(shared, now);
    let mut text = String::new();
    if !alive {
        text += &why_not;
    }
    if alive && obstacles.is_empty() {
        return (true, "ready: attached, attributing, delivering\n".to_owned());
    }
    for obstacle in obstacles {
        // Into a String: cannot fail.
        writeln!(text, "{obstacle}").ok();
    }
    (false, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_obstacle_is_a_line() {
        let shared = Shared::new();
        let now = Instant::now();
        let delivery =
            |destination: &str, state| Delivery { destination: destination.into(), signal: Signal::Logs, state };
        let mut condition = Condition {
            deliveries: vec![delivery("a", State::Untried), delivery("b", State::Delivering)],
            ..Condition::default()
        };
        *lock(&shared.condition) = condition.clone();
        assert_eq!(ready(&shared, now), (true, "ready: attached, attributing, delivering\n".into()));
        condition.degraded.push("docker's socket: gone".into());
        condition.busy = Some((Duration::from_secs(7), "/usr/bin/bash of process 3".into()));
        condition.deliveries[0].state = State::Failing { reason: "refused\nagain".into() };
        condition.deliveries[1].state = State::Losing { reason: "x".repeat(1000) };
        *lock(&shared.condition) = condition;
        let lines = "not attributing: docker's socket: gone\nnot probing: busy since 7 s with /usr/bin/bash of process 3\n\
            not delivering logs to a: failing: refused again\n";
        let last = "not delivering logs to b: losing: ";
        let lines = format!("{lines}{last}{}\n", "x".repeat(LINE - last.len()));
        assert_eq!(ready(&shared, now), (false, lines));
        let (is_ready, text) = ready(&shared, now + ALIVE + Duration::from_secs(1));
        assert!(
            !is_ready && text.starts_with("not alive: the pipeline has made no progress for 6 s\nnot attributing"),
            "{text}"
        );
    }

    #[test]
    fn who_drains_is_alive_but_not_ready() {
        let shared = Shared::new();
        let later = Instant::now() + 2 * ALIVE;
        assert!(!alive(&shared, later).0);
        *lock(&shared.condition) = Condition { stopping: true, ..Condition::default() };
        assert!(alive(&shared, later).0);
        assert_eq!(ready(&shared, later), (false, "not attached: stopping\n".into()));
    }
}
