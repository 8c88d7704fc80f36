//! Containers that are not wanted: filtered in the kernel, by what their runtime says of them.
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use namespan_integration::PATIENCE;
use namespan_integration::docker::Docker;
use namespan_integration::namespan::{Namespan, shipped};
use namespan_integration::needs::{Need, met};
use namespan_integration::program::Program;
use namespan_integration::sink::{Record, Sink};
use namespan_integration::watched::poll;

/// Of a program in a container that is not wanted.
const RUNS: usize = 300;

fn ready() -> bool {
    met(&[Need::Namespan, Need::Docker])
}

/// Ids of the containers that are told of; empty: the host.
fn owners(records: &[Record]) -> BTreeSet<String> {
    let id = |record: &Record| record.resource.attributes.get("container.id").map(|id| id.text().to_owned());
    records.iter().map(|record| id(record).unwrap_or_default()).collect()
}

fn set<const N: usize>(ids: [&str; N]) -> BTreeSet<String> {
    ids.map(str::to_owned).into()
}

#[test]
fn containers_are_selected_by_what_their_runtime_says_of_them() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let other = Docker::new();
    let labels = ["--label", "com.docker.compose.project=shop", "--label", "tier=front"];
    let web = docker.run("web", &[&["--detach"][..], &labels].concat(), &["sleep", "600"]);
    let db = other.run("db", &["--detach", "--label", "tier=back"], &["sleep", "600"]);
    let selected = |arguments: &[&str]| {
        let records = shipped(arguments, || {
            for container in [&web, &db] {
                let run = Command::new("docker").args(["exec", &container.name, "true"]).status();
                assert!(run.unwrap().success());
            }
        });
        owners(&records)
    };
    let (name, image) = (format!("name:{}*", &web.name[..web.name.len() - 1]), format!("image:{}", other.image));
    let (web_alone, db_alone) = (set([&web.id]), set([&db.id]));
    assert_eq!(selected(&["--include", &name]), web_alone);
    assert_eq!(selected(&["--include", &image]), db_alone);
    assert_eq!(selected(&["--include", "compose:sh?p"]), web_alone);
    assert_eq!(selected(&["--include", "label:tier=*", "--exclude", "label:tier=front"]), db_alone);
    assert_eq!(selected(&["--include", "compose:nothing", "--include", "label:tier=back"]), db_alone);
    let others = selected(&["--exclude", &name]);
    assert!(others.contains("") && others.contains(&db.id) && !others.contains(&web.id), "{others:?}");
}

#[test]
fn what_is_not_wanted_is_filtered_in_the_kernel() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let go = tempfile::tempdir().unwrap();
    let volume = format!("{}:/go", go.path().display());
    let script = format!(
        "until [ -e /go/go ]; do /bin/sleep 0.05; done
        n=0; while [ $n -lt {RUNS} ]; do /bin/true; n=$((n + 1)); done; echo done > /go/done; /bin/sleep 600"
    );
    let container = docker.run("loud", &["--detach", "--volume", &volume], &["sh", "-c", &script]);
    let (sink, program) = (Sink::start(), Program::new());
    let exclude = format!("name:{}", container.name);
    let environment = [
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "200"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf"),
    ];
    let endpoint = sink.endpoint();
    let namespan =
        Namespan::run_with(&["--console", "none", "--endpoint", &endpoint, "--exclude", &exclude], &environment);
    let filtered = || sink.metric("namespan.kernel.events", ("namespan.outcome", "filtered")).unsigned_abs();
    // Of ourselves and of the waiting container.
    poll(PATIENCE, || (filtered() > 20).then_some(())).expect("the kernel side has been told");
    let before = filtered();
    fs::write(go.path().join("go"), "").unwrap();
    poll(PATIENCE, || go.path().join("done").exists().then_some(())).expect("the container runs");
    let last = program.run("true", ["x"]);
    sink.wait_for("the last exec", PATIENCE, |records| {
        records.iter().any(|record| *record.get("process.pid") == last.pid.into()).then_some(())
    });
    let finished = namespan.stop().without_loss();
    let records = sink.records();
    assert_eq!(finished.summary.exported, records.len() as u64);
    assert!(!owners(&records).contains(&container.id));
    let (told, ran) = (filtered() - before, 2 * RUNS as u64);
    assert!(told >= ran, "{told} of {ran}");
}
