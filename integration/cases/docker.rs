//! Containers of a real Docker daemon: told from the host and from each other, however little they are set apart.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use namespan_integration::PATIENCE;
use namespan_integration::attribute::Value;
use namespan_integration::docker::{Container, Docker, TAG};
use namespan_integration::host::{self, namespace_number};
use namespan_integration::namespan::{Namespan, shipped, table};
use namespan_integration::needs::{Need, met};
use namespan_integration::program::{Program, Ran, count, exec_of, exit_of};
use namespan_integration::relay::Relay;
use namespan_integration::rotel::Rotel;
use namespan_integration::sink::{Record, Sink, lines};

/// Prints its namespaces, then becomes `ls`; by its path, or busybox would run it within the shell.
const NAMESPACES_THEN_LS: &str =
    "for n in pid net mnt uts ipc user cgroup time; do readlink /proc/self/ns/$n; done; hostname; exec /bin/ls -d /";

fn ready() -> bool {
    met(&[Need::Namespan, Need::Docker])
}

fn ls_on_the_host(program: &Program) -> Ran {
    program.run("ls", ["-d", "/"])
}

/// Records of a container, by its id.
fn of<'a>(container: &Container, records: &'a [Record]) -> Vec<&'a Record> {
    let id: Value = container.id.as_str().into();
    records.iter().filter(|record| *record.of_resource("container.id") == id).collect()
}

/// Exec or exit of what was started so: unlike comm, the process itself cannot change it.
fn runs(record: &Record, command: &str) -> bool {
    *record.get("process.command") == command.into()
}

/// The only exec of a command in a container.
fn exec_in<'a>(container: &Container, command: &str, records: &'a [Record]) -> &'a Record {
    let ours = of(container, records);
    let found: Vec<_> = ours.iter().filter(|record| record.is_exec() && runs(record, command)).collect();
    assert_eq!(found.len(), 1, "execs of {command} among {} records of {}", ours.len(), container.name);
    found[0]
}

fn inodes(record: &Record) -> Vec<i64> {
    host::NAMESPACES.iter().map(|kind| record.get(&format!("namespan.namespace.{kind}.inode")).int()).collect()
}

/// Exec and exit of a process have the same owner and place.
fn same_place(exec: &Record, exit: &Record) {
    assert_eq!(exec.resource.attributes, exit.resource.attributes);
    assert_eq!(inodes(exec), inodes(exit));
    for key in
        ["namespan.uts.nodename", "process.vpid", "process.parent_pid", "process.creation.time", "process.linux.cgroup"]
    {
        assert_eq!(exec.get(key), exit.get(key), "{key}");
    }
}

#[test]
fn ls_on_the_host_and_ls_in_a_container_are_told_apart_over_grpc() {
    told_apart("grpc");
}

#[test]
fn ls_on_the_host_and_ls_in_a_container_are_told_apart_over_http() {
    told_apart("http/protobuf");
}

fn told_apart(protocol: &str) {
    if !ready() || !met(&[Need::Rotel]) {
        return;
    }
    let (docker, program) = (Docker::new(), Program::new());
    let sink = Sink::start();
    let rotel = Rotel::start(&sink);
    let endpoint = rotel.endpoint(protocol);
    let namespan = Namespan::run(&["--console", "none", "--protocol", protocol, "--endpoint", &endpoint]);
    let on_host = ls_on_the_host(&program);
    let container = docker.run("ls", &[], &["sh", "-c", NAMESPACES_THEN_LS]);
    let summary = namespan.stop().shipped_all().summary;
    let records = rotel.delivered(&sink, summary.exported);

    let of_program = program.of(&records);
    let host_ls = exec_of(&of_program, on_host.pid);
    same_place(host_ls, exit_of(&of_program, on_host.pid));
    assert_eq!(*host_ls.of_resource("container.id"), Value::Empty);
    assert_eq!(*host_ls.get("namespan.uts.nodename"), host::nodename().as_str().into());
    assert_eq!(host_ls.get("process.pid"), host_ls.get("process.vpid"));
    assert_eq!(inodes(host_ls), host::NAMESPACES.map(|kind| host::namespace("self", kind)));

    let container_ls = exec_in(&container, "/bin/ls", &records);
    let pid = container_ls.get("process.pid").int();
    same_place(container_ls, exit_of(&of(&container, &records), pid));
    let mut printed = container.stdout.lines();
    let seen_inside: Vec<_> = printed.by_ref().take(8).map(namespace_number).collect();
    assert_eq!(inodes(container_ls), seen_inside);
    assert_ne!(inodes(container_ls)[0], inodes(host_ls)[0], "PID namespaces");
    assert_eq!(*container_ls.get("namespan.uts.nodename"), printed.next().unwrap().into());
    assert_eq!(*container_ls.get("namespan.uts.nodename"), container.id[..12].into());
    assert_eq!(*container_ls.get("process.vpid"), 1.into());
    assert_ne!(pid, 1);
    assert_eq!(*container_ls.get("process.executable.path"), "/bin/busybox".into());
    assert_eq!(*container_ls.get("process.command_args"), ["/bin/ls", "-d", "/"].into());
    assert_eq!(*container_ls.get("namespan.process.start_type"), "reexec".into());
    assert_eq!(*container_ls.get("namespan.container.attribution"), "runtime_event".into());
    let cgroup = container_ls.get("process.linux.cgroup").text();
    assert!(cgroup.contains(&container.id), "{cgroup}");

    let expected: BTreeMap<_, Value> = [
        ("container.id", container.id.as_str().into()),
        ("container.name", container.name.as_str().into()),
        ("container.runtime.name", "docker".into()),
        ("container.image.name", docker.image.as_str().into()),
        ("container.image.tags", [TAG].into()),
        ("container.image.id", docker.image_id.as_str().into()),
        ("service.name", docker.image.as_str().into()),
        ("host.name", host::nodename().as_str().into()),
        ("os.type", "linux".into()),
    ]
    .into();
    for (key, value) in expected {
        assert_eq!(*container_ls.of_resource(key), value, "{key}");
    }
    for key in ["host.id", "host.arch"] {
        assert_eq!(container_ls.of_resource(key), host_ls.of_resource(key), "{key}");
    }
    assert!(!container_ls.resource.attributes.keys().any(|key| key.starts_with("process.")));
}

#[test]
fn containers_that_share_a_namespace_with_the_host_are_still_themselves() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let kinds = ["pid", "uts", "cgroup"];
    let mut containers = Vec::new();
    let records = shipped(&[], || {
        for (kind, option) in kinds.iter().zip(["--pid=host", "--uts=host", "--cgroupns=host"]) {
            let container = docker.run(kind, &[option], &["sh", "-c", NAMESPACES_THEN_LS]);
            containers.push((*kind, container));
        }
        let own = docker.run("own", &["--cgroupns=private"], &["sh", "-c", NAMESPACES_THEN_LS]);
        containers.push(("", own));
    });
    for (shared, container) in &containers {
        let ls = exec_in(container, "/bin/ls", &records);
        assert_eq!(*ls.of_resource("container.name"), container.name.as_str().into());
        let inside: Vec<_> = container.stdout.lines().take(8).map(namespace_number).collect();
        assert_eq!(inodes(ls), inside, "{shared}");
        for (kind, inode) in host::NAMESPACES.iter().zip(inodes(ls)) {
            // Docker leaves these to the host; the cgroup namespace too on a host with cgroup v1, if not told otherwise.
            let expected = kind == shared || ["user", "time"].contains(kind);
            if *kind != "cgroup" || shared.is_empty() {
                assert_eq!(inode == host::namespace("self", kind), expected, "{kind} of {}", container.name);
            }
        }
        let nodename = if *shared == "uts" { host::nodename() } else { container.id[..12].to_owned() };
        assert_eq!(*ls.get("namespan.uts.nodename"), nodename.as_str().into());
        let vpid = if *shared == "pid" { ls.get("process.pid").int() } else { 1 };
        assert_eq!(*ls.get("process.vpid"), vpid.into(), "{shared}");
    }
}

#[test]
fn a_pid_namespace_unshared_inside_a_container_still_belongs_to_it() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let mut containers = Vec::new();
    let records = shipped(&[], || {
        let script = "readlink /proc/self/ns/pid; unshare -p -f /bin/ls -d /; true";
        containers.push(docker.run("unshare", &["--cap-add", "SYS_ADMIN"], &["sh", "-c", script]));
    });
    let [container] = &containers[..] else { panic!("one") };
    let shell = exec_in(container, "sh", &records);
    let ls = exec_in(container, "/bin/ls", &records);
    let outer = namespace_number(container.stdout.lines().next().unwrap());
    assert_eq!(inodes(shell)[0], outer);
    assert!(inodes(ls)[0] != outer && inodes(ls)[0] != host::namespace("self", "pid"));
    assert_eq!(*ls.get("process.vpid"), 1.into());
    assert_eq!(shell.resource.attributes, ls.resource.attributes);
    assert_eq!(*ls.of_resource("container.name"), container.name.as_str().into());
    same_place(ls, exit_of(&of(container, &records), ls.get("process.pid").int()));
}

#[test]
fn containers_that_live_for_50_ms_all_have_their_names_from_the_first_exec_on() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let mut containers = Vec::new();
    let records = shipped(&[], || {
        containers.extend((0..20).map(|number| docker.run_and_forget(&number.to_string(), &["true"])));
    });
    for container in &containers {
        let ours = of(container, &records);
        for record in &ours {
            assert_eq!(*record.of_resource("container.name"), container.name.as_str().into(), "{record:?}");
        }
        let first = exec_in(container, "true", &records);
        assert_eq!(*first.get("process.vpid"), 1.into());
        assert_eq!(exit_of(&ours, first.get("process.pid").int()).get("process.exit.code").int(), 0);
    }
    let ids: BTreeSet<_> = containers.iter().map(|container| &container.id).collect();
    assert_eq!(ids.len(), 20);
}

#[test]
fn containers_that_ran_before_are_known_and_named() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let container = docker.run("before", &["--detach"], &["sleep", "600"]);
    let records = shipped(&[], || {
        let done = Command::new("docker").args(["exec", &container.name, "true"]).status().unwrap();
        assert!(done.success());
    });
    let exec = exec_in(&container, "true", &records);
    assert_eq!(*exec.of_resource("container.name"), container.name.as_str().into());
    assert_eq!(*exec.of_resource("container.image.name"), docker.image.as_str().into());
    assert_eq!(*exec.get("namespan.container.attribution"), "runtime_api".into());
}

#[test]
fn without_docker_the_id_alone_is_known_and_said_to_come_from_the_cgroup() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    for arguments in
        [&["--runtime", "docker=none"][..], &["--runtime", "docker=/nonexistent/docker.sock", "--no-runtime-files"]]
    {
        let mut containers = Vec::new();
        let records = shipped(arguments, || {
            containers.push(docker.run(&arguments.len().to_string(), &[], &["true"]));
        });
        let container = &containers[0];
        let exec = exec_in(container, "true", &records);
        assert_eq!(*exec.get("namespan.container.attribution"), "cgroup_path".into());
        let known: Vec<_> = exec.resource.attributes.keys().filter(|key| key.starts_with("container.")).collect();
        assert_eq!(known, ["container.id", "container.runtime.name"]);
        assert_eq!(*exec.of_resource("container.runtime.name"), "docker".into());
        assert_eq!(*exec.of_resource("service.name"), "unknown_service".into());
    }
}

#[test]
fn labels_are_sent_if_they_are_allowed_and_compose_names_the_service() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let labels = ["com.example.team=core", "com.example=no", "version=7", "secret=x"];
    let composed = ["com.docker.compose.service=web", "com.docker.compose.project=site"];
    let options = |labels: &[&'static str]| labels.iter().flat_map(|label| ["--label", *label]).collect::<Vec<_>>();
    let mut containers = Vec::new();
    let records = shipped(&["--label", "com.example.*", "--label", "version"], || {
        containers.push(docker.run("labels", &options(&labels), &["true"]));
    });
    let labels_of = |record: &Record| {
        let label = |(key, value): (&String, &Value)| {
            Some((key.strip_prefix("container.label.")?.to_owned(), value.text().to_owned()))
        };
        record.resource.attributes.iter().filter_map(label).collect::<Vec<_>>()
    };
    let expected = [("com.example.team", "core"), ("version", "7")];
    let found = labels_of(exec_in(&containers[0], "true", &records));
    assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));

    // Those of Compose are allowed by default.
    let records = shipped(&[], || {
        containers.push(docker.run("compose", &options(&composed), &["true"]));
    });
    let exec = exec_in(&containers[1], "true", &records);
    assert_eq!(labels_of(exec).len(), 2);
    assert_eq!(*exec.of_resource("service.name"), "web".into());
    assert_eq!(*exec.of_resource("service.namespace"), "site".into());
}

#[test]
fn a_request_has_each_container_once_and_each_its_own() {
    if !ready() {
        return;
    }
    let (docker, program) = (Docker::new(), Program::new());
    let sink = Sink::start();
    // All in one request, as far as its size allows.
    let arguments = ["--console", "none", "--endpoint", &sink.endpoint()];
    let namespan = Namespan::run_with(&arguments, &[("OTEL_BLRP_SCHEDULE_DELAY", "60000")]);
    let containers: Vec<_> = (0..3)
        .map(|number| {
            ls_on_the_host(&program);
            docker.run(&number.to_string(), &[], &["sh", "-c", "/bin/ls /; /bin/ls /"])
        })
        .collect();
    assert!(namespan.stop().shipped_all().status.success());
    let mut together = 0;
    for request in sink.requests() {
        let mut groups: Vec<&Record> = Vec::new();
        for record in &request {
            if groups.last().is_none_or(|last| !std::sync::Arc::ptr_eq(&last.resource, &record.resource)) {
                groups.push(record);
            }
        }
        let owners: Vec<_> = groups.iter().map(|record| record.of_resource("container.id")).collect();
        let distinct = owners.iter().enumerate().all(|(index, owner)| !owners[..index].contains(owner));
        assert!(distinct, "{owners:?}");
        together = together.max(owners.len());
    }
    assert!(together > 1, "several resources in one request");
    let records = sink.records();
    for container in &containers {
        let ls = of(container, &records).into_iter().filter(|record| runs(record, "/bin/ls"));
        assert_eq!(count(ls), (2, 2));
    }
    assert_eq!(count(program.of(&records)), (3, 3));
}

#[test]
fn the_table_has_the_name_of_the_container_and_the_hostname_of_the_host() {
    if !ready() {
        return;
    }
    let (docker, program) = (Docker::new(), Program::new());
    let mut namespaces = String::new();
    let printed = table(&[], || {
        ls_on_the_host(&program);
        namespaces = docker.run("t", &[], &["sh", "-c", NAMESPACES_THEN_LS]).stdout;
    });
    let head: Vec<_> = printed.lines().next().unwrap().split_whitespace().filter(|word| *word != "(UTC)").collect();
    assert_eq!(head, ["TIME", "PIDNS", "CONTAINER", "PPID", "PID", "VPID", "UID", "COMM", "ARGS"]);
    let row = |words: &[&str]| {
        // The shell's row has all of its script.
        let mut rows = printed.lines().filter(|line| !line.contains("readlink"));
        let row = rows.find(|line| words.iter().all(|word| line.contains(word)));
        row.unwrap_or_else(|| panic!("no {words:?} in\n{printed}")).split_whitespace().collect::<Vec<_>>()
    };
    let on_host = row(&[&program.name, "ls -d /"]);
    assert_eq!(on_host[1], host::namespace("self", "pid").to_string());
    assert_eq!(on_host[2], host::nodename());
    assert_eq!(on_host[3], std::process::id().to_string());
    assert_eq!(on_host[4], on_host[5]);
    // A long name is cut where the column ends: it begins as the container's does.
    let pid_namespace = namespace_number(namespaces.lines().next().unwrap()).to_string();
    let in_container = row(&[&pid_namespace, "ls -d /"]);
    let name = docker.name("t");
    let shown: String = in_container[2].chars().take_while(char::is_ascii).collect();
    assert!(shown.len() >= 15 && name.starts_with(&shown), "{} for {name}", in_container[2]);
    assert_eq!(in_container[5..7], ["1", "0"]);
    assert!(!printed.contains('\x1b'), "no colour but on a terminal");
}

#[test]
fn json_lines_are_requests_and_hold_every_event() {
    if !ready() {
        return;
    }
    let (docker, program) = (Docker::new(), Program::new());
    let namespan = Namespan::run(&["--console", "jsonl"]);
    let on_host = ls_on_the_host(&program);
    let container = docker.run("json", &[], &["/bin/ls"]);
    let finished = namespan.stop().without_loss();
    let (records, _) = lines(&finished.stdout);
    assert_eq!(records.len() as u64, finished.summary.seen);
    assert_eq!(finished.summary.printed, finished.summary.seen);
    let of_program = program.of(&records);
    same_place(exec_of(&of_program, on_host.pid), exit_of(&of_program, on_host.pid));
    let ls = exec_in(&container, "/bin/ls", &records);
    assert_eq!(*ls.of_resource("container.name"), container.name.as_str().into());
    assert_eq!(ls.event, "namespan.process.exec");
}

#[test]
fn only_the_host_and_only_containers_are_just_that() {
    if !ready() {
        return;
    }
    let (docker, program) = (Docker::new(), Program::new());
    let mount = format!("{}:/nstest", program.directory().display());
    // Busybox goes by its first argument.
    let script = format!("exec -a true /nstest/{}", program.name);
    let mut number = 0;
    let mut act = || {
        number += 1;
        program.run_times(3);
        docker.run(&number.to_string(), &["--volume", &mount], &["sh", "-c", &script])
    };
    let mut containers = Vec::new();
    // With --comm all that comes is ours: the rest of the host stays out of the count.
    let both = shipped(&["--comm", &program.name], || containers.push(act()));
    assert_eq!(count(&both), (4, 4));
    let host = shipped(&["--comm", &program.name, "--host"], || containers.push(act()));
    assert_eq!(count(&host), (3, 3));
    assert!(host.iter().all(|record| *record.of_resource("container.id") == Value::Empty));
    let inside = shipped(&["--comm", &program.name, "--containers"], || containers.push(act()));
    assert_eq!(count(&inside), (1, 1));
    assert_eq!(*inside[0].of_resource("container.id"), containers[2].id.as_str().into());
}

#[test]
fn that_docker_tells_nothing_any_more_is_a_record_and_so_is_that_it_does_again() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let folder = tempfile::tempdir().unwrap();
    let (socket, target) = (folder.path().join("docker.sock"), Path::new("/var/run/docker.sock"));
    let relay = Relay::start(&socket, target);
    let sink = Sink::start();
    let runtime = format!("docker={}", socket.display());
    let arguments = ["--console", "none", "--endpoint", &sink.endpoint(), "--runtime", &runtime, "--no-runtime-files"];
    let namespan = Namespan::run(&arguments);
    let wait = |event: &str| {
        sink.wait_for(event, PATIENCE, |records| {
            records.iter().find(|record| record.event == event).map(|r| (*r).clone())
        })
    };
    let named = docker.run("named", &[], &["true"]);
    drop(relay);
    let degraded = wait("namespan.attribution.degraded");
    let nameless = docker.run("nameless", &[], &["true"]);
    let _relay = Relay::start(&socket, target);
    let recovered = wait("namespan.attribution.recovered");
    let again = docker.run("again", &[], &["true"]);
    let summary = namespan.stop().without_loss().summary;
    let records = sink.records();
    assert_eq!((summary.seen, summary.exported), (records.len() as u64, records.len() as u64));

    for (note, severity) in [(&degraded, 13), (&recovered, 9)] {
        assert_eq!(note.severity, severity);
        assert_eq!(*note.get("container.runtime.name"), "docker".into());
        assert_eq!(*note.get("namespan.runtime.source"), "socket".into());
        assert_eq!(*note.of_resource("service.name"), "namespan".into());
    }
    assert_ne!(*degraded.get("namespan.reason"), Value::Empty);
    for (container, how, certainty) in [
        (&named, "runtime_event", "confirmed"),
        (&nameless, "cgroup_path", "inferred"),
        (&again, "runtime_event", "confirmed"),
    ] {
        let exec = exec_in(container, "true", &records);
        assert_eq!(*exec.get("namespan.container.attribution"), how.into(), "{}", container.name);
        assert_eq!(*exec.get("namespan.container.certainty"), certainty.into());
    }
}
