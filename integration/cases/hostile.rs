//! Containers that want to be taken for others: the attacks really run, and each is told as its own container's.
use std::fs;
use std::process::Command;

use namespan_integration::attribute::Value;
use namespan_integration::cgroup;
use namespan_integration::docker::{Container, Docker};
use namespan_integration::namespan::shipped;
use namespan_integration::needs::{Need, met};
use namespan_integration::sink::Record;

/// What an attack takes: all of it needs privileges that a container has only if it is given them.
const PRIVILEGED: [&str; 6] =
    ["--cap-add", "SYS_ADMIN", "--cap-add", "SYS_PTRACE", "--security-opt", "seccomp=unconfined"];
/// Each of the host's hierarchies at a path of its own: `/v2`, `/v1` that of memory, or of what else counts there.
const MOUNT: &str = "
    b() { /bin/busybox \"$@\"; }
    b mkdir -p /v2 /v1; b mount -t cgroup2 none /v2
    for c in memory pids cpu cpuset; do b mount -t cgroup -o $c none /v1 2>/dev/null && break; done
    enter() { for h in /v2 /v1; do b mkdir -p $h/$1 2>/dev/null && echo 0 > $h/$1/cgroup.procs; done; }
";

/// Of a flood.
const CGROUPS: usize = 1500;

fn ready() -> bool {
    met(&[Need::Namespan, Need::Docker])
}

/// A container that goes on running beside the attack.
fn victim(docker: &Docker) -> Container {
    docker.run("victim", &["--detach"], &["sleep", "600"])
}

/// A container that runs a script with `MOUNT` before it, to the end.
fn attack(docker: &Docker, options: &[&str], script: &str) -> Container {
    docker.run("attacker", &[&PRIVILEGED[..], options].concat(), &["sh", "-c", &format!("{MOUNT}\n{script}")])
}

/// The only exec of `/bin/true` with this mark.
fn marked<'a>(records: &'a [Record], mark: &str) -> &'a Record {
    let is = |record: &&Record| *record.get("process.command_args") == ["/bin/true", mark].into();
    let found: Vec<_> = records.iter().filter(|record| record.is_exec()).filter(is).collect();
    assert_eq!(found.len(), 1, "execs of {mark}");
    found[0]
}

#[track_caller]
fn is_of(record: &Record, container: &Container) {
    assert_eq!(*record.of_resource("container.id"), container.id.as_str().into());
    assert_eq!(*record.of_resource("container.name"), container.name.as_str().into());
}

/// No record of the victim but those of its own processes.
fn victim_is_left_alone(records: &[Record], victim: &Container) {
    let id: Value = victim.id.as_str().into();
    let theirs: Vec<_> = records.iter().filter(|record| *record.of_resource("container.id") == id).collect();
    assert!(theirs.iter().all(|record| *record.get("process.command") != "/bin/true".into()), "{theirs:?}");
}

/// A command as many forks away from the last exec as the kernel side does not look.
fn far_below(command: &str) -> String {
    const FORKS: usize = 100;
    format!("{}{command}{}", "(".repeat(FORKS), "; :)".repeat(FORKS))
}

#[test]
fn cgroups_named_like_another_container_s_id_name_nobody() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let victim = victim(&docker);
    let (id, fake) = (&victim.id, format!("nstest-{}", std::process::id()));
    let deep = far_below("/bin/true deep");
    let mut attackers = Vec::new();
    let records = shipped(&[], || {
        let script = format!(
            "own=$(b sed -n 's/^0:://p' /proc/self/cgroup)
            (enter $own/docker/{id}; /bin/true below)
            (enter {fake}/{id}; /bin/true elsewhere)
            (enter docker/{id}; /bin/true inside; (/bin/true child))
            (enter docker/{id}; {deep})
            for h in /v2 /v1; do echo 0 > $h/cgroup.procs; done; /bin/true root"
        );
        attackers.push(attack(&docker, &[], &script));
        cgroup::remove(&fake);
    });
    let attacker = &attackers[0];
    let below = marked(&records, "below");
    is_of(below, attacker);
    assert_eq!(*below.get("namespan.container.nested.id"), id.as_str().into());
    assert_eq!(*below.get("namespan.container.certainty"), "confirmed".into());
    for mark in ["elsewhere", "inside", "child", "deep"] {
        let record = marked(&records, mark);
        is_of(record, attacker);
        assert_eq!(*record.get("namespan.container.attribution"), "lineage".into(), "{mark}");
        assert_eq!(*record.get("namespan.container.claimed.id"), id.as_str().into(), "{mark}");
    }
    let root = marked(&records, "root");
    is_of(root, attacker);
    assert_eq!(*root.get("namespan.container.attribution"), "lineage".into());
    victim_is_left_alone(&records, &victim);
}

#[test]
fn names_and_namespaces_of_another_container_make_nobody_that_container() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let victim = victim(&docker);
    let pid = Command::new("docker").args(["inspect", "--format", "{{.State.Pid}}", &victim.name]).output().unwrap();
    let pid = String::from_utf8(pid.stdout).unwrap().trim().to_owned();
    let (mut attackers, own) = (Vec::new(), std::process::id());
    let records = shipped(&[], || {
        let script = format!(
            "/bin/busybox hostname {name}; /bin/true renamed
            /bin/busybox unshare -p -u -m -f /bin/true unshared
            /bin/busybox nsenter -t {pid} -m -p -n /bin/true entered
            /bin/busybox nsenter -t {own} -m /bin/true escaped
            {MOUNT}
            (enter docker/{id}; b nsenter -t {pid} -m -p -n /bin/true both)
            {deep}",
            id = victim.id,
            deep = far_below("/bin/true deep"),
            name = victim.name
        );
        let options = [&PRIVILEGED[..], &["--pid=host"]].concat();
        attackers.push(docker.run("attacker", &options, &["sh", "-c", &script]));
    });
    let attacker = &attackers[0];
    for (mark, entry) in [
        ("renamed", "init"),
        ("unshared", "init"),
        ("deep", "init"),
        ("entered", "nsenter"),
        ("escaped", "nsenter"),
        ("both", "nsenter"),
    ] {
        let record = marked(&records, mark);
        is_of(record, attacker);
        assert_eq!(*record.get("namespan.container.entry"), entry.into(), "{mark}");
    }
    assert_eq!(*marked(&records, "renamed").get("namespan.uts.nodename"), victim.name.as_str().into());
    assert_eq!(*marked(&records, "entered").get("namespan.container.entered.id"), victim.id.as_str().into());
    assert_eq!(*marked(&records, "escaped").get("namespan.container.entered.host"), true.into());
    victim_is_left_alone(&records, &victim);
}

#[test]
fn how_a_process_came_into_a_container_is_told() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let before = docker.run("before", &["--detach"], &["sh", "-c", "while :; do /bin/sleep 0.1; done"]);
    let mut containers = Vec::new();
    let records = shipped(&[], || {
        let script = "/bin/true own; (/bin/true grandchild); exec /bin/sleep 600";
        let container = docker.run("in", &["--detach"], &["sh", "-c", script]);
        let run = |command: &mut Command| assert!(command.status().unwrap().success());
        run(Command::new("docker").args(["exec", &container.name, "/bin/sh", "-c", "/bin/true brought; :"]));
        run(Command::new("docker").args(["exec", &before.name, "/bin/true", "brought-before"]));
        let pid = Command::new("docker").args(["inspect", "--format", "{{.State.Pid}}", &container.name]).output();
        let pid = String::from_utf8(pid.unwrap().stdout).unwrap().trim().to_owned();
        run(Command::new("nsenter").args(["-t", &pid, "-m", "-p", "/bin/true", "from-host"]));
        containers.push(container);
    });
    let container = &containers[0];
    let entry = |mark: &str| marked(&records, mark).get("namespan.container.entry").clone();
    assert_eq!((entry("own"), entry("grandchild")), ("init".into(), "init".into()));
    assert_eq!((entry("brought"), entry("brought-before")), ("exec".into(), "exec".into()));
    is_of(marked(&records, "own"), container);
    is_of(marked(&records, "brought-before"), &before);
    let from_host = marked(&records, "from-host");
    assert_eq!(*from_host.get("namespan.container.entry"), "nsenter".into());
    assert_eq!(*from_host.get("namespan.container.entered.id"), container.id.as_str().into());
    assert_eq!(*from_host.of_resource("container.id"), Value::Empty);

    // A process of a container's own tree is one also where the tree is older than we are.
    let id: Value = before.id.as_str().into();
    let sleeps: Vec<_> = records
        .iter()
        .filter(|record| {
            *record.of_resource("container.id") == id && *record.get("process.command") == "/bin/sleep".into()
        })
        .collect();
    assert!(sleeps.iter().any(|record| record.is_exec()));
    assert!(sleeps.iter().all(|record| *record.get("namespan.container.entry") == "init".into()), "{sleeps:?}");

    // The runtime's processes on their way into a container are no programs of it, wherever they already are.
    let setups = records.iter().filter(|record| *record.get("namespan.container.entry") == "setup".into());
    let id: Value = container.id.as_str().into();
    let (inside, outside): (Vec<_>, Vec<_>) = setups.partition(|record| *record.of_resource("container.id") == id);
    assert!(inside.iter().all(|record| record.comm().starts_with("runc")), "{inside:?}");
    let runs_runc = |record: &&&Record| record.get("process.executable.path").text().contains("runc");
    assert!(outside.iter().filter(|record| record.is_exec()).any(|record| runs_runc(&record)), "{outside:?}");
}

#[test]
fn what_a_user_s_own_cgroups_are_named_is_believed_of_nobody() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let victim = victim(&docker);
    let nobody = "0123456789abcdef".repeat(4);
    let unified = cgroup::unified();
    let uid = 60_000 + std::process::id() % 5000;
    let slice = format!("user.slice/user-{uid}.slice");
    let scope = |id: &str| unified.join(&slice).join(format!("user@{uid}.service/user.slice/libpod-{id}.scope"));
    let records = shipped(&[], || {
        for (id, mark) in [(victim.id.as_str(), "known"), (&nobody, "unknown")] {
            let scope = scope(id);
            fs::create_dir_all(&scope).unwrap();
            let script = format!("echo 0 > {}/cgroup.procs; /bin/true {mark}", scope.display());
            assert!(Command::new("/bin/busybox").args(["sh", "-c", &script]).status().unwrap().success());
        }
    });
    cgroup::remove(&slice);
    for (mark, how, id) in [("known", "contradicted", &victim.id), ("unknown", "unverified", &nobody)] {
        let record = marked(&records, mark);
        assert_eq!(*record.of_resource("container.id"), Value::Empty);
        assert_eq!(*record.get("namespan.container.attribution"), how.into());
        assert_eq!(*record.get("namespan.container.certainty"), "refused".into());
        assert_eq!(*record.get("namespan.container.claimed.id"), id.as_str().into());
    }
    victim_is_left_alone(&records, &victim);
}

#[test]
fn a_path_that_is_too_deep_to_be_read_names_nobody() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let victim = victim(&docker);
    // Of so many cgroups the kernel side tells 16 that are neither at the leaf nor at the root.
    let mut names = vec!["x"; 290];
    names[0] = "nstest-deep";
    (names[18], names[19]) = ("docker", &victim.id);
    let folder = cgroup::unified().join(names.join("/"));
    let records = shipped(&[], || {
        fs::create_dir_all(&folder).unwrap();
        let script = format!("cd {}; echo 0 > cgroup.procs; /bin/true deep", folder.display());
        assert!(Command::new("/bin/busybox").args(["sh", "-c", &script]).status().unwrap().success());
    });
    cgroup::remove(names[0]);
    let record = marked(&records, "deep");
    assert_eq!(*record.of_resource("container.id"), Value::Empty);
    assert_eq!(*record.get("namespan.container.certainty"), "refused".into());
    victim_is_left_alone(&records, &victim);
}

#[test]
fn a_flood_of_cgroups_and_children_costs_no_other_container_its_name() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let victim = docker.run("victim", &["--detach"], &["sh", "-c", "while :; do /bin/sleep 0.02; done"]);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("small.yaml");
    // Room for 32 cgroups.
    fs::write(&config, "enrich: {cache_entries: 8}\n").unwrap();
    let mut attackers = Vec::new();
    let records = shipped(&["--config", config.to_str().unwrap()], || {
        let script = format!(
            "own=$(b sed -n 's/^0:://p' /proc/self/cgroup); n=0
            while [ $n -lt {CGROUPS} ]; do
                b mkdir /v2$own/$n; (echo 0 > /v2$own/$n/cgroup.procs; /bin/true flood); n=$((n + 1))
            done
            echo 0 > /v2$own/cgroup.procs; n=0
            while [ $n -lt {CGROUPS} ]; do b rmdir /v2$own/$n; n=$((n + 1)); done"
        );
        attackers.push(attack(&docker, &[], &script));
    });
    let attacker = &attackers[0];
    let of = |container: &Container| {
        let id: Value = container.id.as_str().into();
        records.iter().filter(move |record| *record.of_resource("container.id") == id)
    };
    let floods = of(attacker).filter(|record| record.is_exec() && *record.get("process.command") == "/bin/true".into());
    assert_eq!(floods.count(), CGROUPS);
    let mut sleeps = 0;
    for record in of(&victim) {
        is_of(record, &victim);
        sleeps += usize::from(record.is_exec());
    }
    assert!(sleeps > 10, "{sleeps}");
}

#[test]
fn what_a_runtime_says_is_data() {
    if !ready() {
        return;
    }
    let docker = Docker::new();
    let label = format!("com.example.odd=\u{1b}[31m\n\"{}", "x".repeat(5000));
    let mut containers = Vec::new();
    let records = shipped(&["--label", "com.example.*"], || {
        containers.push(docker.run("odd", &["--label", &label], &["/bin/true", "odd"]));
    });
    let record = marked(&records, "odd");
    is_of(record, &containers[0]);
    let told = record.of_resource("container.label.com.example.odd").text();
    assert_eq!(told.len(), 1024);
    assert!(told.starts_with("\u{1b}[31m\n\"xxx"), "it is sent as it is, and cut");
}
