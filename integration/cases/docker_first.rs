//! Docker's containers that live as long as `true`: no first exec goes without its name.

use std::process::Command;

use namespan_integration::docker::Docker;
use namespan_integration::image::succeed;
use namespan_integration::marks::{Marked, assert_attributed, execs, execs_of, mark, once, thrice};
use namespan_integration::namespan::shipped;
use namespan_integration::needs::{Need, met};

const CONTAINERS: usize = 200;

#[test]
fn two_hundred_runs_of_true_have_two_hundred_names_from_the_first_exec_on() {
    if !met(&[Need::Namespan, Need::Docker]) {
        return;
    }
    let docker = Docker::new();
    let mut all = Vec::new();
    let records = shipped(&[], || {
        all.extend((0..CONTAINERS).map(|number| {
            let mark = mark();
            let container = docker.run_and_forget(&number.to_string(), &once(&mark));
            Marked::named(mark, 1, &container, &docker.image, "docker")
        }));
    });
    assert_eq!(all.len(), CONTAINERS);
    assert_attributed(&all, &records);
    for exec in execs(&records).values().flatten() {
        assert_eq!(*exec.get("namespan.container.attribution"), "runtime_event".into());
        assert_eq!(*exec.get("namespan.container.entry"), "init".into());
        assert_eq!(*exec.get("process.vpid"), 1.into());
    }
}

#[test]
fn what_is_executed_in_a_container_is_its_own_and_told_apart_from_its_first_process() {
    if !met(&[Need::Namespan, Need::Docker]) {
        return;
    }
    let docker = Docker::new();
    let marks = [mark(), mark()];
    let mut all = Vec::new();
    let records = shipped(&[], || {
        let script = r#"/bin/true "$0"; exec /bin/sleep 600"#;
        let container = docker.run("long", &["--detach"], &["/bin/sh", "-c", script, &marks[0]]);
        succeed(Command::new("docker").args(["exec", &container.name]).args(thrice(&marks[1])));
        let marked = [(&marks[0], 2), (&marks[1], 3)];
        all.extend(marked.map(|(mark, execs)| Marked::named(mark.clone(), execs, &container, &docker.image, "docker")));
    });
    assert_attributed(&all, &records);
    for (mark, entry) in marks.iter().zip(["init", "exec"]) {
        for exec in execs_of(mark, &records) {
            assert_eq!(*exec.get("namespan.container.entry"), entry.into());
        }
    }
}
