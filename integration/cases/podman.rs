//! Podman's containers, of root and of a user, under each layout of cgroups, with no service of Podman's running.
#![expect(clippy::panic, reason = "a test fails by panicking")]

use namespan_integration::attribute::Value;
use namespan_integration::marks::{Marked, assert_attributed, execs_of, mark, once, thrice};
use namespan_integration::namespan::{Namespan, shipped};
use namespan_integration::needs::{Need, met};
use namespan_integration::podman::{Cgroups, Podman};
use namespan_integration::sink::Record;
use namespan_integration::sink::Sink;

fn ready() -> bool {
    met(&[Need::Namespan, Need::Program("podman"), Need::Program("crun"), Need::Program("runc")])
}

fn ready_for_users() -> bool {
    ready() && met(&[Need::Program("newuidmap"), Need::Program("useradd"), Need::Program("setpriv")])
}

/// Of the execs that bear this mark, in order.
fn entries<'a>(mark: &str, records: &'a [Record]) -> Vec<&'a str> {
    execs_of(mark, records).iter().map(|exec| exec.get("namespan.container.entry").text()).collect()
}

fn only<'a>(mark: &str, records: &'a [Record]) -> &'a Record {
    let [exec] = execs_of(mark, records)[..] else { panic!("not one exec with {mark}") };
    exec
}

fn short_lived(podman: &Podman) -> Vec<Record> {
    let mut all = Vec::new();
    let records = shipped(&[], || {
        all.extend((0..20).map(|number| {
            let mark = mark();
            let container = podman.run_and_forget(&number.to_string(), &thrice(&mark));
            Marked::named(mark, 3, &container, &podman.image.repository, "podman")
        }));
    });
    if let Some(uid) = podman.uid() {
        all = all.into_iter().map(|marked| marked.with("namespan.container.user.id", &uid.to_string())).collect();
    }
    assert_attributed(&all, &records);
    for marked in &all {
        assert_eq!(entries(&marked.mark, &records), ["init"; 3]);
    }
    records
}

#[test]
fn short_lived_containers_of_crun_have_their_names_where_systemd_puts_them() {
    if ready() {
        short_lived(&Podman::new("crun", Cgroups::Systemd));
    }
}

#[test]
fn short_lived_containers_of_runc_have_their_names_where_systemd_puts_them() {
    if ready() {
        short_lived(&Podman::new("runc", Cgroups::Systemd));
    }
}

#[test]
fn short_lived_containers_have_their_names_where_podman_itself_puts_them() {
    if ready() {
        short_lived(&Podman::new("runc", Cgroups::Mounted));
        short_lived(&Podman::new("crun", Cgroups::V2));
    }
}

#[test]
fn short_lived_containers_have_their_names_on_cgroup_v1() {
    if ready() {
        short_lived(&Podman::new("crun", Cgroups::V1));
    }
}

/// A container that does something and then stays, and something that is executed in it.
fn stays_and_executes(podman: &Podman, marks: &[String; 2]) -> [Marked; 2] {
    let options = ["--detach", "--label", "com.example.team=core", "--label", "other=x"];
    let script = r#"/bin/true "$0"; exec /bin/sleep 600"#;
    let container = podman.run("long", &options, &["/bin/sh", "-c", script, &marks[0]]);
    podman.exec(&container, &thrice(&marks[1]));
    let made = [(&marks[0], 2), (&marks[1], 3)];
    made.map(|(mark, execs)| Marked::named(mark.clone(), execs, &container, &podman.image.repository, "podman"))
}

#[test]
fn what_is_executed_in_a_container_is_its_own_and_told_apart_from_its_first_process() {
    if !ready() {
        return;
    }
    let podman = Podman::new("crun", Cgroups::Systemd);
    let marks = [mark(), mark()];
    let mut all = Vec::new();
    let records = shipped(&[], || all.extend(stays_and_executes(&podman, &marks)));
    assert_attributed(&all, &records);
    assert_eq!(entries(&marks[0], &records), ["init"; 2]);
    assert_eq!(entries(&marks[1], &records), ["exec"; 3]);
}

/// No file but a database has them.
#[test]
fn podman_s_service_knows_labels_too() {
    if !ready() {
        return;
    }
    let podman = Podman::new("crun", Cgroups::Systemd);
    let service = podman.serve();
    let marks = [mark(), mark()];
    let mut all = Vec::new();
    let sink = Sink::start();
    let runtime = service.setting();
    let options = ["--runtime", &runtime, "--label", "com.example.*"];
    let namespan = Namespan::run(&[&["--console", "none", "--endpoint", &sink.endpoint()], &options[..]].concat());
    // Until then its files are all that is known.
    namespan.wait_for_log("connected: its containers have names runtime=\"podman\"");
    let made = stays_and_executes(&podman, &marks);
    all.extend(made.map(|marked| marked.with("container.label.com.example.team", "core")));
    assert!(namespan.stop().shipped_all().status.success());
    let records = sink.records();
    assert_attributed(&all, &records);
    assert_eq!(*execs_of(&marks[0], &records)[0].of_resource("container.label.other"), Value::Empty);
}

#[test]
fn a_container_that_ran_before_is_known() {
    if !ready() {
        return;
    }
    let podman = Podman::new("crun", Cgroups::Systemd);
    let container = podman.run("before", &["--detach"], &["/bin/sleep", "600"]);
    let mark = mark();
    let records = shipped(&[], || {
        podman.exec(&container, &once(&mark));
    });
    let marked = Marked::named(mark.clone(), 1, &container, &podman.image.repository, "podman");
    assert_attributed(&[marked], &records);
    assert_eq!(entries(&mark, &records), ["exec"]);
}

#[test]
fn containers_in_the_host_s_pid_namespace_are_still_themselves() {
    if !ready() {
        return;
    }
    let podman = Podman::new("crun", Cgroups::Systemd);
    let mark = mark();
    let mut all = Vec::new();
    let records = shipped(&[], || {
        let container = podman.run("host", &["--pid=host"], &once(&mark));
        all.push(Marked::named(mark.clone(), 1, &container, &podman.image.repository, "podman"));
    });
    assert_attributed(&all, &records);
    let exec = only(&mark, &records);
    assert_eq!(exec.get("process.vpid"), exec.get("process.pid"));
}

#[test]
fn containers_of_a_pod_that_share_a_pid_namespace_are_told_apart() {
    if !ready() {
        return;
    }
    let podman = Podman::new("crun", Cgroups::Systemd);
    let marks = [mark(), mark()];
    let mut all = Vec::new();
    let records = shipped(&[], || {
        let pod = podman.pod("pod", "pid,ipc");
        for (number, mark) in marks.iter().enumerate() {
            let container = podman.run(&number.to_string(), &["--pod", &pod], &once(mark));
            all.push(Marked::named(mark.clone(), 1, &container, &podman.image.repository, "podman"));
        }
    });
    assert_attributed(&all, &records);
    let namespaces = marks.each_ref().map(|mark| only(mark, &records).get("namespan.namespace.pid.inode").int());
    assert_eq!(namespaces[0], namespaces[1]);
    assert!(marks.iter().all(|mark| *only(mark, &records).get("process.vpid") != 1.into()), "who pauses is process 1");
}

#[test]
fn a_user_s_containers_are_that_user_s_where_systemd_puts_them() {
    if ready_for_users() {
        short_lived(&Podman::rootless("crun", Cgroups::Systemd));
        short_lived(&Podman::rootless("runc", Cgroups::Systemd));
    }
}

#[test]
fn a_user_s_containers_without_cgroups_of_their_own_are_never_anyone_else_s() {
    if !ready_for_users() {
        return;
    }
    let podman = Podman::rootless("runc", Cgroups::Mounted);
    let mark = mark();
    let mut id = String::new();
    let records = shipped(&[], || id = podman.run_and_forget("none", &once(&mark)).id);
    let found = only(&mark, &records).of_resource("container.id");
    assert!([Value::Empty, id.as_str().into()].contains(found), "{found:?}");
}
