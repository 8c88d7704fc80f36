//! Every runtime at once: whoever makes a container, each exec in it is told as that container's.
#![expect(clippy::print_stderr, reason = "a test fails by panicking and says what it took")]

use std::thread::{ScopedJoinHandle, scope};
use std::time::Instant;

use namespan_integration::containerd::Containerd;
use namespan_integration::cri::Cri;
use namespan_integration::docker::Docker;
use namespan_integration::marks::{Marked, assert_attributed, execs, mark, once, thrice};
use namespan_integration::namespan::shipped;
use namespan_integration::needs::{Need, met};
use namespan_integration::podman::{Cgroups, Podman};

const DOCKER: usize = 200;
const CTR: usize = 300;
const PODMAN_CRUN: usize = 200;
const PODMAN_RUNC: usize = 50;
const PODMAN_ROOTLESS: usize = 50;
const PODS: usize = 20;
const PER_POD: usize = 10;
const ALL: usize = DOCKER + CTR + PODMAN_CRUN + PODMAN_RUNC + PODMAN_ROOTLESS + PODS * PER_POD;

fn ready() -> bool {
    let programs = ["containerd", "ctr", "podman", "crun", "runc", "newuidmap", "useradd", "setpriv"];
    let needs = programs.map(Need::Program);
    met(&[&[Need::Namespan, Need::Docker][..], &needs].concat())
}

/// So many containers one after the other; says what one takes.
fn lane(name: &str, count: usize, make: impl Fn(usize) -> Marked) -> Vec<Marked> {
    let start = Instant::now();
    let all: Vec<_> = (0..count).map(make).collect();
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("{name}: {count} containers in {seconds:.0} s");
    all
}

fn of_docker(docker: &Docker) -> Vec<Marked> {
    lane("docker", DOCKER, |number| {
        let mark = mark();
        let container = docker.run_and_forget(&number.to_string(), &once(&mark));
        Marked::named(mark, 1, &container, &docker.image, "docker")
    })
}

/// Their ids are free-form, or look like those of everyone else.
fn of_ctr(containerd: &Containerd) -> Vec<Marked> {
    lane("ctr", CTR, |number| {
        let mark = mark();
        let id = if number.is_multiple_of(2) {
            format!("{}.{number}", containerd.namespace)
        } else {
            format!("{number:064x}")
        };
        containerd.run(&id, &[], &thrice(&mark));
        let marked = Marked::new(mark, 3, &id, &containerd.image.repository, "containerd");
        marked.with("namespan.container.namespace", &containerd.namespace)
    })
}

fn of_podman(name: &str, podman: &Podman, count: usize) -> Vec<Marked> {
    lane(name, count, |number| {
        let mark = mark();
        let container = podman.run_and_forget(&number.to_string(), &thrice(&mark));
        let marked = Marked::named(mark, 3, &container, &podman.image.repository, "podman");
        match podman.uid() {
            Some(uid) => marked.with("namespan.container.user.id", &uid.to_string()),
            None => marked,
        }
    })
}

fn of_pods(containerd: &Containerd, cri: &Cri) -> Vec<Marked> {
    let in_pod = |pod: usize| {
        let uid = format!("{pod:08x}-5d0c-4a34-b6b1-2d6f9c1e7a10");
        let class = ["", "/burstable", "/besteffort"][pod % 3];
        let parent = format!("/kubepods{class}/pod{uid}");
        let pod = cri.run_pod(&format!("web-{pod}"), "shop", &uid, &parent, &[]);
        lane(&pod.name, PER_POD, |number| {
            let mark = mark();
            let container = pod.run(&format!("step-{number}"), &thrice(&mark));
            Marked::in_pod(mark, 3, &container, &containerd.image.repository, &pod)
        })
    };
    (0..PODS).flat_map(in_pod).collect()
}

#[test]
fn a_thousand_short_lived_containers_of_all_runtimes_have_each_exec_told_as_theirs() {
    if !ready() {
        return;
    }
    let (docker, containerd) = (Docker::new(), Containerd::start());
    let cri = Cri::connect(&containerd.socket, &containerd.image.tagged());
    let crun = Podman::new("crun", Cgroups::Systemd);
    let runc = Podman::new("runc", Cgroups::Mounted);
    let rootless = Podman::rootless("crun", Cgroups::Systemd);
    let mut all = Vec::new();
    let records = shipped(&["--runtime", &containerd.setting()], || {
        all = scope(|scope| {
            let lanes = [
                scope.spawn(|| of_docker(&docker)),
                scope.spawn(|| of_ctr(&containerd)),
                scope.spawn(|| of_podman("podman, crun", &crun, PODMAN_CRUN)),
                scope.spawn(|| of_podman("podman, runc", &runc, PODMAN_RUNC)),
                scope.spawn(|| of_podman("podman, rootless", &rootless, PODMAN_ROOTLESS)),
                scope.spawn(|| of_pods(&containerd, &cri)),
            ];
            lanes.into_iter().map(ScopedJoinHandle::join).flat_map(Result::unwrap).collect()
        });
    });
    assert_eq!(all.len(), ALL);
    assert_attributed(&all, &records);
    for exec in execs(&records).values().flatten() {
        let attribution = exec.get("namespan.container.attribution").text();
        assert!(["runtime_event", "runtime_api", "runtime_files"].contains(&attribution), "{exec:#?}");
        assert_eq!(*exec.get("namespan.container.entry"), "init".into(), "{exec:#?}");
    }
}
