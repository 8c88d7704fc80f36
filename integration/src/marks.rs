//! The workloads' own word: each exec in a container bears that container's mark among its arguments.

use std::collections::{BTreeMap, HashMap};

use crate::attribute::Value;
use crate::containerd::CRI_NAMESPACE;
use crate::cri::Pod;
use crate::docker::Container;
use crate::image::{BUSYBOX, TAG, unique};
use crate::sink::Record;

/// Every mark begins so.
const PREFIX: &str = "nstest-mark-";

/// A container, by whoever made it, and the execs that it did.
#[derive(Clone, Debug)]
pub struct Marked {
    pub mark: String,
    pub execs: usize,
    /// What the resource of each of its records must have.
    pub resource: Vec<(&'static str, Value)>,
}

impl Marked {
    /// Of a container that has a name of its own.
    #[must_use]
    pub fn named(mark: String, execs: usize, container: &Container, image: &str, runtime: &str) -> Self {
        Self::new(mark, execs, &container.id, image, runtime).with("container.name", &container.name)
    }

    /// Of one that has an id only.
    #[must_use]
    pub fn new(mark: String, execs: usize, id: &str, image: &str, runtime: &str) -> Self {
        let resource = vec![
            ("container.id", id.into()),
            ("container.image.name", image.into()),
            ("container.image.tags", [TAG].into()),
            ("container.runtime.name", runtime.into()),
        ];
        Self { mark, execs, resource }
    }

    /// And this of its resource.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: &str) -> Self {
        self.resource.push((key, value.into()));
        self
    }

    /// Of one in a pod.
    #[must_use]
    pub fn in_pod(mark: String, execs: usize, container: &Container, image: &str, pod: &Pod<'_>) -> Self {
        Self::named(mark, execs, container, image, "containerd")
            .with("namespan.container.namespace", CRI_NAMESPACE)
            .with("k8s.container.name", &container.name)
            .with("k8s.pod.name", &pod.name)
            .with("k8s.namespace.name", &pod.namespace)
            .with("k8s.pod.uid", &pod.uid)
    }
}

/// A mark for a container that is yet to be made.
#[must_use]
pub fn mark() -> String {
    unique(PREFIX.trim_end_matches('-'))
}

/// One exec, the container's first.
#[must_use]
pub fn once(mark: &str) -> [&str; 2] {
    ["/bin/true", mark]
}

/// Three execs in two processes: the container's first, a child, and the first process again.
#[must_use]
pub fn thrice(mark: &str) -> [&str; 4] {
    ["/bin/sh", "-c", r#"/bin/true "$0"; exec /bin/true "$0""#, mark]
}

/// The execs within containers that bear a mark, by mark.
#[must_use]
pub fn execs(records: &[Record]) -> HashMap<&str, Vec<&Record>> {
    let mut found: HashMap<_, Vec<_>> = HashMap::new();
    for record in records.iter().filter(|record| record.is_exec() && is_inside(record)) {
        if let Some(mark) = mark_of(record) {
            found.entry(mark).or_default().push(record);
        }
    }
    found
}

/// The execs that bear this mark, in order.
#[must_use]
pub fn execs_of<'a>(mark: &str, records: &'a [Record]) -> Vec<&'a Record> {
    let mut found = execs(records).remove(mark).unwrap_or_default();
    found.sort_by_key(|record| record.time_ns);
    found
}

/// Each exec that bears a mark, and its process's exit, is that mark's container's; none is missing, none too many. What
/// bears a mark outside, as the runtimes' clients do, is the host's.
pub fn assert_attributed(all: &[Marked], records: &[Record]) {
    let by_mark = execs(records);
    let faults: Vec<_> = all.iter().flat_map(|marked| faults(marked, &by_mark)).collect();
    let mut kinds = BTreeMap::<_, usize>::new();
    for (kind, _) in &faults {
        *kinds.entry(kind).or_default() += 1;
    }
    let shown: Vec<_> = faults.iter().take(20).map(|(_, fault)| fault.as_str()).collect();
    assert!(faults.is_empty(), "with {} containers {kinds:#?}:\n{}", all.len(), shown.join("\n"));
    let known = |mark: &str| all.iter().any(|marked| marked.mark == mark);
    let stray: Vec<_> = by_mark.keys().filter(|mark| !known(mark)).collect();
    assert!(stray.is_empty(), "marks of nobody: {stray:?}");

    let outside = records.iter().filter(|record| record.is_exec() && !is_inside(record) && mark_of(record).is_some());
    for record in outside {
        assert_eq!(*record.of_resource("container.id"), Value::Empty, "{record:#?}");
    }
    let exits: HashMap<_, _> =
        records.iter().filter(|record| record.is_exit()).map(|exit| (process(exit), exit)).collect();
    // What still runs has no exit.
    for (exec, exit) in by_mark.values().flatten().filter_map(|exec| Some((exec, exits.get(&process(exec))?))) {
        assert_eq!(exec.resource.attributes, exit.resource.attributes);
    }
}

/// Each with what is wrong, an attribute's key or the number of execs.
fn faults(marked: &Marked, by_mark: &HashMap<&str, Vec<&Record>>) -> Vec<(&'static str, String)> {
    let records = by_mark.get(marked.mark.as_str()).map_or(&[][..], Vec::as_slice);
    let number = |count: usize| Value::Int(count.try_into().unwrap());
    let mut compared = vec![("execs", number(records.len()), number(marked.execs))];
    for record in records {
        let values =
            |(key, expected): &(&'static str, Value)| (*key, record.of_resource(key).clone(), expected.clone());
        compared.extend(marked.resource.iter().map(values));
    }
    compared.retain(|(_, found, expected)| found != expected);
    let told = |(kind, found, expected)| (kind, format!("{}: {kind} is {found:?}, not {expected:?}", marked.mark));
    compared.into_iter().map(told).collect()
}

/// Our image has one program, which no host uses to run a runtime.
fn is_inside(record: &Record) -> bool {
    *record.get("process.executable.path") == BUSYBOX.into()
}

fn mark_of(record: &Record) -> Option<&str> {
    let Value::List(arguments) = record.get("process.command_args") else { return None };
    let texts =
        arguments.iter().filter_map(|argument| if let Value::Text(text) = argument { Some(text) } else { None });
    texts.map(String::as_str).find(|text| text.starts_with(PREFIX))
}

/// A process, for ever.
fn process(record: &Record) -> (i64, String) {
    (record.get("process.pid").int(), record.get("process.creation.time").text().to_owned())
}
