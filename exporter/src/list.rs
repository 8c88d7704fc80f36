//! `namespan containers`: the settings come in; a line for each container of this host goes out, as its runtime and its
//! processes tell of it.

pub(crate) mod host;
mod print;
pub mod symbols;
mod told;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Config;
use crate::enrich::container::Container;
use crate::enrich::runtime::Place;
use crate::enrich::{self, How};
use host::{Hierarchies, Namespaces, Process};
use told::Told;

/// How long runtimes may take, all in all.
const PATIENCE: Duration = Duration::from_secs(5);

/// A container, and what is in it.
struct Listed {
    container: Arc<Container>,
    how: How,
    /// Inode of its cgroup's directory.
    cgroup: Option<u64>,
    /// Of its first process.
    namespaces: Namespaces,
    /// Its first process, where that is known, before the others.
    pids: Vec<u32>,
}

/// Prints a table, or one JSON object; which runtimes have not told comes back, in whole sentences.
pub async fn list(config: &Config, json: bool, out: &mut dyn Write) -> io::Result<Vec<String>> {
    let (told, processes) = ask(config).await?;
    let listed = listed(&told, &processes);
    if json {
        print::json(&listed, out)?;
    } else {
        print::table(&listed, out)?;
    }
    Ok(told.silent(&config.enrich.runtimes))
}

/// What runtimes tell, and what runs.
async fn ask(config: &Config) -> io::Result<(Told, Vec<Process>)> {
    let deadline = Instant::now() + PATIENCE;
    let mut told = Told::start(enrich::runtimes(config).into_iter().map(|(runtime, _)| runtime).collect());
    told.connected(deadline).await;
    let processes = host::processes()?;
    let keyed = processes.iter().filter_map(|process| Some((process.key()?, process.container()?.runtime)));
    let unknown: BTreeMap<_, _> = keyed.filter(|(key, _)| !told.is_told_by_runtime(key)).collect();
    told.look_up(&unknown, deadline).await;
    Ok((told, processes))
}

/// All that runtimes have told of, and all that processes are in; by name, and by id where they have none.
fn listed(told: &Told, processes: &[Process]) -> Vec<Listed> {
    let hierarchies = Hierarchies::of_this_process();
    let mut members: BTreeMap<String, Vec<&Process>> = BTreeMap::new();
    for process in processes {
        let key = process.key().or_else(|| told.owner(process));
        if let Some(key) = key {
            members.entry(key).or_default().push(process);
        }
    }
    let mut listed = Vec::new();
    for (key, known) in &told.known {
        let inside = members.remove(key).unwrap_or_default();
        listed.push(describe(Arc::clone(&known.container), known.how, &known.place, &inside, &hierarchies));
    }
    for inside in members.values() {
        let Some(found) = inside.first().and_then(|process| process.container()) else { continue };
        let container = Container { user: found.user, ..Container::of_id(found.id.to_owned(), found.runtime) };
        let container = Arc::new(container);
        listed.push(describe(container, How::CgroupPath, &Place::default(), inside, &hierarchies));
    }
    listed.sort_by(|one, other| order(one).cmp(&order(other)));
    listed
}

fn order(listed: &Listed) -> (bool, Option<&str>, &str) {
    (listed.container.name.is_none(), listed.container.name.as_deref(), &listed.container.id)
}

fn describe(
    container: Arc<Container>,
    how: How,
    place: &Place,
    inside: &[&Process],
    hierarchies: &Hierarchies,
) -> Listed {
    let named = inside.iter().find(|process| Some(process.pid) == place.pid);
    let first = named.or_else(|| inside.iter().min_by_key(|process| process.pid));
    let cgroup = match (&place.cgroup, first) {
        (Some(path), _) => hierarchies.inode(path),
        (None, Some(process)) => process.container().and_then(|found| hierarchies.inode_of(&found)),
        (None, None) => None,
    };
    let namespaces = first.map(|process| Namespaces::of(process.pid)).unwrap_or_default();
    let mut pids: Vec<_> = inside.iter().map(|process| process.pid).collect();
    pids.sort_unstable_by_key(|pid| (first.map(|first| first.pid) != Some(*pid), *pid));
    Listed { container, how, cgroup, namespaces, pids }
}

#[cfg(test)]
mod tests;
