//! Containers come in; a table for people or JSON for programs goes out.

use std::io::{self, Write};

use serde::Serialize;

use super::Listed;
use super::host::Namespaces;
use crate::enrich::container::Container;
use crate::model::text::Line;

/// Digits of an id that people are shown.
const ID_WIDTH: usize = 12;
const HEAD: [&str; 10] =
    ["CONTAINER", "NAME", "IMAGE", "RUNTIME", "CGROUP", "PIDNS", "MNTNS", "NETNS", "PROCESSES", "FOUND BY"];
/// Columns of numbers, which are aligned at their right.
const NUMBERS: std::ops::RangeInclusive<usize> = 4..=8;

/// Aligned columns; `-` where something is not known.
pub fn table(listed: &[Listed], out: &mut dyn Write) -> io::Result<()> {
    let rows: Vec<_> = listed.iter().map(row).collect();
    let mut widths = HEAD.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let head = HEAD.map(str::to_owned);
    for row in std::iter::once(&head).chain(&rows) {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let padding = " ".repeat(width - cell.chars().count());
            let cells = if NUMBERS.contains(&column) { [&padding, cell, " "] } else { [cell, padding.as_str(), " "] };
            line.extend(cells);
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    out.flush()
}

fn row(Listed { container, how, cgroup, namespaces, pids }: &Listed) -> [String; 10] {
    let text = |text: Option<String>| text.map_or_else(|| "-".to_owned(), |text| printable(&text));
    let number = |number: Option<u64>| text(number.map(|number| number.to_string()));
    let Namespaces { pid, mnt, net } = *namespaces;
    [
        printable(&container.id.chars().take(ID_WIDTH).collect::<String>()),
        text(name(container)),
        text(image(container)),
        container.runtime.to_owned(),
        number(*cgroup),
        number(pid.map(u64::from)),
        number(mnt.map(u64::from)),
        number(net.map(u64::from)),
        pids.len().to_string(),
        how.as_str().to_owned(),
    ]
}

/// In Kubernetes the pod's name says more than that which the runtime was given.
fn name(container: &Container) -> Option<String> {
    let pod = &container.pod;
    match (&pod.namespace, &pod.name, &pod.container) {
        (Some(namespace), Some(name), Some(container)) => Some(format!("{namespace}/{name}/{container}")),
        (_, _, _) => container.name.clone(),
    }
}

fn image(container: &Container) -> Option<String> {
    let image = container.image.as_ref()?;
    Some(match image.tags.first() {
        Some(tag) => format!("{}:{tag}", image.name),
        None => image.name.clone(),
    })
}

fn printable(text: &str) -> String {
    let mut line = Line::default();
    line.push(text.as_bytes());
    line.as_str().to_owned()
}

#[derive(Serialize)]
struct Objects<'a> {
    containers: Vec<Object<'a>>,
}

#[derive(Serialize)]
struct Object<'a> {
    id: &'a str,
    name: Option<&'a str>,
    image: Option<String>,
    runtime: &'a str,
    pod: Option<&'a str>,
    /// Kubernetes', else containerd's.
    namespace: Option<&'a str>,
    cgroup_id: Option<u64>,
    namespaces: Namespaces,
    processes: usize,
    found_by: &'a str,
}

/// One object on one line.
pub fn json(listed: &[Listed], out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Objects { containers: listed.iter().map(object).collect() })?;
    writeln!(out)?;
    out.flush()
}

fn object(Listed { container, how, cgroup, namespaces, pids }: &Listed) -> Object<'_> {
    Object {
        id: &container.id,
        name: container.name.as_deref(),
        image: image(container),
        runtime: container.runtime,
        pod: container.pod.name.as_deref(),
        namespace: container.pod.namespace.as_deref().or(container.namespace.as_deref()),
        cgroup_id: *cgroup,
        namespaces: *namespaces,
        processes: pids.len(),
        found_by: how.as_str(),
    }
}
