use super::super::api::{ContainerMetadata, ImageSpec, SandboxMetadata};
use super::*;

const IMAGE_ID: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const SCOPE: &str = "/kubepods.slice/kubepods-pod1.slice/crio-a.scope";

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn kept() -> Labels {
    Labels { sent: vec!["*".to_owned()], matched: Vec::new() }
}

fn sandbox_status() -> SandboxStatus {
    SandboxStatus {
        id: "pause".to_owned(),
        metadata: Some(SandboxMetadata { name: "shop-0".into(), uid: "17b1".into(), namespace: "prod".into() }),
        state: 0,
        labels: map(&[("app", "shop"), ("tier", "pod")]),
        annotations: map(&[("resource.opentelemetry.io/service.name", "checkout"), ("other", "x")]),
    }
}

/// As CRI-O writes it.
const INFO: &str = r#"{"sandboxID":"pause","pid":7,"runtimeSpec":{"ociVersion":"1.2.0","process":{"user":{"uid":0},
    "env":["OTEL_RESOURCE_ATTRIBUTES=team=core"]},"linux":{"cgroupsPath":"kubepods-pod1.slice:crio:a"}},
    "privileged":false}"#;

fn container(info: &str) -> Container {
    let status = ContainerStatus {
        id: "a".to_owned(),
        metadata: Some(ContainerMetadata { name: "web".to_owned() }),
        state: 1,
        image: Some(ImageSpec { image: "quay.io/a/web:1".to_owned(), ..ImageSpec::default() }),
        image_ref: "quay.io/a/web@sha256:1".to_owned(),
        image_id: IMAGE_ID.to_owned(),
        labels: map(&[("tier", "container")]),
        annotations: map(&[("resource.opentelemetry.io/service.namespace", "web"), ("other", "x")]),
    };
    Container { status: Some(status), info: map(&[("info", info)]) }
}

#[test]
fn a_container_is_what_its_status_and_its_pod_say() {
    let record = Record::new(container(INFO)).unwrap();
    assert_eq!(record.sandbox(), Some("pause"));
    let Seen { container: found, place, running } = record.seen("cri-o", Some(sandbox_status()), &kept());
    let pod = [&found.pod.name, &found.pod.namespace, &found.pod.uid, &found.pod.container];
    assert_eq!(pod.map(|part| part.as_deref()), ["shop-0", "prod", "17b1", "web"].map(Some));
    assert_eq!((found.runtime, found.namespace, found.name.as_deref()), ("cri-o", None, Some("web")));
    assert_eq!(found.service.name.as_deref(), Some("checkout"));
    assert_eq!(found.service.namespace.as_deref(), Some("web"));
    assert_eq!(found.service.attributes, [("team".to_owned(), "core".to_owned())]);
    let label = |key: &str| found.labels.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str());
    assert_eq!((label("app"), label("tier"), label("other")), (Some("shop"), Some("container"), None));
    let image = found.image.unwrap();
    assert_eq!(
        (image.name.as_str(), image.tags, image.id.as_deref()),
        ("quay.io/a/web", vec!["1".into()], Some(IMAGE_ID))
    );
    assert_eq!(image.repo_digests, ["quay.io/a/web@sha256:1"]);
    assert_eq!((running, place), (true, Place { cgroup: Some(SCOPE.to_owned()), pid: Some(7) }));
}

#[test]
fn a_sandbox_is_a_container_without_a_name() {
    let info = INFO.replace("crio:a", "crio:pause");
    let found = Sandbox { status: Some(sandbox_status()), info: map(&[("info", &info)]) };
    let Seen { container: found, place, running } = sandbox("cri-o", found, &kept()).unwrap();
    assert_eq!((found.id.as_str(), found.name, found.image, found.pod.container), ("pause", None, None, None));
    assert_eq!((found.pod.name.as_deref(), running, place.pid), (Some("shop-0"), true, Some(7)));
    assert_eq!(place.cgroup, Some(SCOPE.replace("crio-a", "crio-pause")));
}

#[test]
fn containerd_says_by_itself_whether_systemd_makes_its_cgroups() {
    let cgroup = |options: &str| {
        let info = format!(r#"{{"runtimeOptions":{options},{}"#, &INFO[1..]);
        Record::new(container(&info)).unwrap().seen("containerd", None, &kept()).place.cgroup
    };
    assert_eq!(cgroup(r#"{"systemd_cgroup":true}"#).as_deref(), Some(SCOPE));
    assert_eq!((cgroup(r#"{"systemd_cgroup":false}"#), cgroup("{}"), cgroup("null")), (None, None, None));
}

#[test]
fn an_image_without_a_name_has_an_id() {
    let image = |name: &str, image_ref: &str| {
        let spec = Some(ImageSpec { image: name.to_owned(), ..ImageSpec::default() });
        image(&ContainerStatus { image: spec, image_ref: image_ref.to_owned(), ..ContainerStatus::default() })
    };
    let found = image(IMAGE_ID, IMAGE_ID).unwrap();
    assert_eq!((found.name.as_str(), found.id.as_deref(), found.repo_digests.len()), ("", Some(IMAGE_ID), 0));
    let found = image(IMAGE_ID, "a/b@sha256:1").unwrap();
    assert_eq!((found.name.as_str(), found.repo_digests), ("a/b", vec!["a/b@sha256:1".to_owned()]));
    assert_eq!(image("", ""), None);
}

#[test]
fn a_status_with_holes_tells_what_it_has() {
    assert!(Record::new(Container::default()).is_none() && sandbox("cri-o", Sandbox::default(), &kept()).is_none());
    for info in ["", "7", "{}", r#"{"pid":-1}"#, r#"{"pid":"x"}"#, r#"{"pid":99999999999,"runtimeSpec":null}"#, "[[["] {
        let record = Record::new(container(info)).unwrap();
        assert_eq!(record.sandbox(), None, "{info}");
        let seen = record.seen("cri-o", None, &kept());
        assert_eq!((seen.place, seen.container.name.as_deref()), (Place::default(), Some("web")), "{info}");
    }
}
