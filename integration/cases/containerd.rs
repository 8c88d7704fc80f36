//! Containers of containerd: its own clients' and, over CRI, Kubernetes' pods.

use namespan_integration::attribute::{Value, has};
use namespan_integration::containerd::{CRI_NAMESPACE, Containerd};
use namespan_integration::cri::{Cri, Pod};
use namespan_integration::image::{BUSYBOX, TAG};
use namespan_integration::marks::{Marked, assert_attributed, execs_of, mark, once, thrice};
use namespan_integration::namespan::shipped;
use namespan_integration::needs::{Need, met};
use namespan_integration::sink::Record;

const UID: &str = "0e6f6f0c-5d0c-4a34-b6b1-2d6f9c1e7a10";
const BURSTABLE: &str = "/kubepods/burstable/pod0e6f6f0c-5d0c-4a34-b6b1-2d6f9c1e7a10";
const TOLD: [&str; 2] = ["runtime_event", "runtime_api"];

fn ready() -> bool {
    met(&[Need::Namespan, Need::Program("containerd"), Need::Program("ctr"), Need::Program("runc")])
}

fn cri_of(containerd: &Containerd) -> Cri {
    Cri::connect(&containerd.socket, &containerd.image.tagged())
}

fn pod_of(cri: &Cri) -> Pod<'_> {
    cri.run_pod("web-7d9c", "shop", UID, BURSTABLE, &[("app", "web")])
}

fn is_told(record: &Record) {
    let attribution = record.get("namespan.container.attribution").text();
    assert!(TOLD.contains(&attribution), "{attribution}");
}

/// Of the execs that bear this mark, in order.
fn entries<'a>(mark: &str, records: &'a [Record]) -> Vec<&'a str> {
    execs_of(mark, records).iter().map(|exec| exec.get("namespan.container.entry").text()).collect()
}

#[test]
fn a_container_of_ctr_is_known_by_any_id_and_its_namespace() {
    if !ready() {
        return;
    }
    let containerd = Containerd::start();
    let long = "0f".repeat(32);
    let ids = ["web", "web.1_x-y", &long];
    let mut all = Vec::new();
    let records = shipped(&["--runtime", &containerd.setting()], || {
        for id in ids {
            let mark = mark();
            containerd.run(id, &[], &thrice(&mark));
            let marked = Marked::new(mark, 3, id, &containerd.image.repository, "containerd");
            all.push(marked.with("namespan.container.namespace", &containerd.namespace));
        }
    });
    assert_attributed(&all, &records);
    for marked in &all {
        assert_eq!(entries(&marked.mark, &records), ["init"; 3]);
        execs_of(&marked.mark, &records).into_iter().for_each(is_told);
    }
    let of_ours = |record: &&Record| ids.iter().any(|id| *record.of_resource("container.id") == (*id).into());
    let others = |record: &&Record| *record.get("process.executable.path") != BUSYBOX.into();
    for record in records.iter().filter(|record| record.is_exec()).filter(of_ours).filter(others) {
        assert_eq!(*record.get("namespan.container.entry"), "setup".into(), "the runtime's own: {record:#?}");
    }
}

#[test]
fn a_container_of_ctr_may_have_any_cgroup_and_labels() {
    if !ready() {
        return;
    }
    let containerd = Containerd::start();
    let mark = mark();
    let cgroup = format!("/{}/of/my/own", containerd.namespace);
    let records = shipped(&["--runtime", &containerd.setting(), "--label", "com.example.*"], || {
        let options = ["--cgroup", &cgroup, "--label", "com.example.team=core", "--label", "other=x"];
        containerd.run("own", &options, &once(&mark));
    });
    let marked = Marked::new(mark.clone(), 1, "own", &containerd.image.repository, "containerd");
    let marked = marked.with("container.label.com.example.team", "core");
    assert_attributed(&[marked], &records);
    let [exec] = execs_of(&mark, &records)[..] else { panic!("one exec") };
    assert_eq!(*exec.of_resource("container.label.other"), Value::Empty);
}

#[test]
fn what_is_executed_in_a_container_of_ctr_is_told_as_its_own_also_if_it_ran_before() {
    if !ready() {
        return;
    }
    let containerd = Containerd::start();
    let marks = [mark(), mark()];
    containerd.start_container("long", &["/bin/sleep", "600"]);
    let records = shipped(&["--runtime", &containerd.setting()], || {
        for mark in &marks {
            containerd.exec("long", &thrice(mark));
        }
    });
    let all = marks.clone().map(|mark| Marked::new(mark, 3, "long", &containerd.image.repository, "containerd"));
    assert_attributed(&all, &records);
    for mark in &marks {
        assert_eq!(entries(mark, &records), ["exec"; 3]);
    }
}

#[test]
fn a_container_of_a_pod_has_its_name_image_labels_and_pod() {
    if !ready() {
        return;
    }
    let containerd = Containerd::start();
    let cri = cri_of(&containerd);
    let marks = [mark(), mark()];
    let mut all = Vec::new();
    let records = shipped(&["--runtime", &containerd.setting(), "--label", "com.example.*"], || {
        let pod = pod_of(&cri);
        let labels = [("com.example.team", "core"), ("other", "x")];
        let container = pod.start("app", &["/bin/sleep", "600"], &labels);
        pod.exec(&container, &thrice(&marks[0]));
        let image = &containerd.image.repository;
        let marked = Marked::in_pod(marks[0].clone(), 3, &container, image, &pod);
        all.push(marked.with("container.label.com.example.team", "core"));
        let container = pod.run("job", &thrice(&marks[1]));
        all.push(Marked::in_pod(marks[1].clone(), 3, &container, image, &pod));
    });
    assert_attributed(&all, &records);
    assert_eq!(entries(&marks[0], &records), ["exec"; 3]);
    assert_eq!(entries(&marks[1], &records), ["init"; 3]);
    let first = execs_of(&marks[1], &records)[0];
    is_told(first);
    let cgroup = first.get("process.linux.cgroup").text();
    assert!(cgroup.contains(&format!("{BURSTABLE}/")), "{cgroup}");
    assert_eq!(*execs_of(&marks[0], &records)[0].of_resource("container.label.other"), Value::Empty);
}

#[test]
fn a_pod_s_pause_process_is_the_pod_s_without_a_container_s_name() {
    if !ready() {
        return;
    }
    let containerd = Containerd::start();
    let cri = cri_of(&containerd);
    let mut id = String::new();
    let records = shipped(&["--runtime", &containerd.setting()], || id.clone_from(&pod_of(&cri).id));
    let id: Value = id.as_str().into();
    let is_pause = |record: &&Record| record.is_exec() && *record.of_resource("container.id") == id;
    let runs_sleep = |record: &&Record| *record.get("process.command") == "/bin/sleep".into();
    let pauses: Vec<_> = records.iter().filter(is_pause).filter(runs_sleep).collect();
    let [pause] = pauses[..] else { panic!("{} pauses", pauses.len()) };
    let expected: [(_, Value); 6] = [
        ("container.runtime.name", "containerd".into()),
        ("container.image.name", containerd.image.repository.as_str().into()),
        ("container.image.tags", [TAG].into()),
        ("k8s.pod.name", "web-7d9c".into()),
        ("k8s.namespace.name", "shop".into()),
        ("k8s.pod.uid", UID.into()),
    ];
    has(&pause.resource.attributes, "the pause process", &expected);
    assert_eq!(*pause.of_resource("namespan.container.namespace"), CRI_NAMESPACE.into());
    assert_eq!(*pause.of_resource("k8s.container.name"), Value::Empty);
}

#[test]
fn pods_and_containers_that_ran_before_are_known() {
    if !ready() {
        return;
    }
    let containerd = Containerd::start();
    let cri = cri_of(&containerd);
    // Without a parent of its own a pod lies where containerd puts it.
    let pods = [pod_of(&cri), cri.run_pod("bare", "shop", "bare-uid", "", &[])];
    let apps = pods.each_ref().map(|pod| pod.start("app", &["/bin/sleep", "600"], &[]));
    let marks = [mark(), mark()];
    let records = shipped(&["--runtime", &containerd.setting()], || {
        for ((pod, app), mark) in pods.iter().zip(&apps).zip(&marks) {
            pod.exec(app, &once(mark));
        }
    });
    let image = &containerd.image.repository;
    let made = pods.iter().zip(&apps).zip(marks);
    let all: Vec<_> = made.map(|((pod, app), mark)| Marked::in_pod(mark, 1, app, image, pod)).collect();
    assert_attributed(&all, &records);
}
