use super::super::api::Runtime;
use super::*;

const ID: &str = "d0203f329e3cdc44ef1c89ee8b4f10dd923b2598aa68fb61fda555c1d053aa19";
const IMAGE_ID: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn any(type_url: &str, value: impl Into<Vec<u8>>) -> Any {
    Any { type_url: type_url.to_owned(), value: value.into() }
}

fn seen(container: Container, digest: Option<&str>, pod: &[(&str, &str)]) -> Seen {
    let labels = Labels { sent: vec!["*".to_owned()], matched: Vec::new() };
    let record = Record::new(container).unwrap();
    record.seen("k8s.io", Some(7), true, digest.map(ToOwned::to_owned), map(pod), &labels)
}

fn happened(topic: &str, event: &impl Message) -> Option<Happened> {
    let event = Some(any("", event.encode_to_vec()));
    super::event(&Envelope { namespace: "default".to_owned(), topic: topic.to_owned(), event })
}

#[test]
fn events_tell_of_containers_and_their_first_processes() {
    let id = || "a".to_owned();
    let container = ContainerEvent { id: id() };
    assert_eq!(happened("/containers/create", &container), Some(Happened::Created { id: id() }));
    assert_eq!(happened("/containers/update", &container), Some(Happened::Updated { id: id() }));
    assert_eq!(happened("/containers/delete", &container), Some(Happened::Removed { id: id() }));
    let create = TaskCreate { container_id: id(), pid: 7 };
    assert_eq!(happened("/tasks/create", &create), Some(Happened::Started { id: id(), pid: Some(7) }));
    let start = TaskStart { container_id: id(), pid: 0 };
    assert_eq!(happened("/tasks/start", &start), Some(Happened::Started { id: id(), pid: None }));
    let exit = |process: &str| happened("/tasks/exit", &TaskExit { container_id: id(), id: process.to_owned() });
    assert_eq!((exit("a"), exit("exec1"), exit("")), (Some(Happened::Ended { id: id() }), None, None));
    let delete = |process: &str| happened("/tasks/delete", &TaskDelete { container_id: id(), id: process.to_owned() });
    let ended = || Some(Happened::Ended { id: id() });
    assert_eq!((delete("a"), delete(""), delete("exec1")), (ended(), ended(), None));
    assert_eq!(happened("/tasks/oom", &container), None);
}

#[test]
fn an_event_without_a_body_or_with_a_broken_one_is_passed_over() {
    let envelope = |event| Envelope { namespace: String::new(), topic: "/tasks/create".to_owned(), event };
    assert_eq!(event(&envelope(None)), None);
    assert_eq!(event(&envelope(Some(any("", [0x0a, 9, 1])))), None);
}

#[test]
fn a_container_of_ctr_is_named_by_its_id_unless_that_is_a_number() {
    let name = |id: &str, labels: &[(&str, &str)]| {
        let container = Container { id: id.to_owned(), labels: map(labels), ..Container::default() };
        seen(container, None, &[]).container.name
    };
    assert_eq!(name("web", &[]).as_deref(), Some("web"));
    assert_eq!(name(ID, &[]), None);
    assert_eq!(name(ID, &[("nerdctl/name", "shop")]).as_deref(), Some("shop"));
    assert_eq!(name(ID, &[("io.kubernetes.container.name", "web")]).as_deref(), Some("web"));
    assert!(Record::new(Container::default()).is_none());
}

#[test]
fn an_image_is_what_its_reference_and_its_digest_say() {
    let image = |reference: &str, digest| {
        let container = Container { id: "a".to_owned(), image: reference.to_owned(), ..Container::default() };
        seen(container, digest, &[]).container.image
    };
    let found = image("r:5000/a/b:t", Some("sha256:1")).unwrap();
    assert_eq!((found.name.as_str(), found.tags, found.id), ("r:5000/a/b", vec!["t".to_owned()], None));
    assert_eq!(found.repo_digests, ["r:5000/a/b@sha256:1"]);
    assert_eq!(image("a/b@sha256:2", Some("sha256:1")).unwrap().repo_digests, ["a/b@sha256:2"]);
    assert_eq!(image("", None), None);
    let found = image(IMAGE_ID, Some("sha256:1")).unwrap();
    assert_eq!((found.name.as_str(), found.id.as_deref(), found.repo_digests.len()), ("", Some(IMAGE_ID), 0));
}

#[test]
fn a_pod_s_container_has_the_pod_s_labels_and_the_words_of_the_kubelet() {
    let spec = r#"{"process":{"env":["OTEL_RESOURCE_ATTRIBUTES=team=core","SECRET=hunter2"]},"annotations":{
        "io.kubernetes.cri.image-name":"docker.io/library/web:1","io.kubernetes.cri.sandbox-id":"pause",
        "io.kubernetes.cri.sandbox-name":"shop-0","io.kubernetes.cri.sandbox-uid":"17b1",
        "io.kubernetes.cri.sandbox-namespace":"prod","io.kubernetes.cri.container-name":"web"},
        "linux":{"cgroupsPath":"kubepods-pod1.slice:cri-containerd:a"}}"#;
    let metadata = format!(
        r#"{{"Version":"v1","Metadata":{{"ID":"a","ImageRef":"{IMAGE_ID}",
        "Config":{{"annotations":{{"resource.opentelemetry.io/service.name":"checkout","other":"x"}}}}}}}}"#
    );
    let container = |systemd_cgroup| Container {
        id: ID.to_owned(),
        image: IMAGE_ID.to_owned(),
        runtime: Some(Runtime {
            options: Some(any("containerd.runc.v1.Options", RuncOptions { systemd_cgroup }.encode_to_vec())),
        }),
        spec: Some(any("types.containerd.io/opencontainers/runtime-spec/1/Spec", spec)),
        extensions: [(CRI[0].to_owned(), any("", metadata.clone()))].into(),
        ..Container::default()
    };
    assert_eq!(Record::new(container(true)).unwrap().sandbox(), Some("pause"));
    let Seen { container: found, place, running } = seen(container(true), Some("sha256:1"), &[("app", "shop")]);
    let pod = [&found.pod.name, &found.pod.namespace, &found.pod.uid, &found.pod.container];
    assert_eq!(pod.map(|part| part.as_deref()), ["shop-0", "prod", "17b1", "web"].map(Some));
    assert_eq!((found.name.as_deref(), found.service.name.as_deref()), (Some("web"), Some("checkout")));
    assert!(running && found.labels.contains(&("app".to_owned(), "shop".to_owned())));
    assert!(!format!("{found:?}").contains("hunter2") && !found.labels.iter().any(|(key, _)| key == "other"));
    assert_eq!(found.service.attributes, [("team".to_owned(), "core".to_owned())]);
    let image = found.image.unwrap();
    assert_eq!((image.name.as_str(), image.id.as_deref()), ("docker.io/library/web", Some(IMAGE_ID)));
    assert_eq!(image.repo_digests, ["docker.io/library/web@sha256:1"]);
    let scope = "/kubepods.slice/kubepods-pod1.slice/cri-containerd-a.scope";
    assert_eq!((place.cgroup.as_deref(), place.pid), (Some(scope), Some(7)));
    assert_eq!(seen(container(false), None, &[]).place.cgroup, None);
}

#[test]
fn a_sandbox_tells_of_its_pod() {
    let metadata = r#"{"Metadata":{"Config":{"annotations":{"resource.opentelemetry.io/service.name":"x","b":"c"}}}}"#;
    let sandbox = Container {
        id: ID.to_owned(),
        labels: map(&[("app", "shop"), ("io.cri-containerd.kind", "sandbox"), ("io.kubernetes.pod.uid", "17b1")]),
        extensions: [(CRI[1].to_owned(), any("", metadata))].into(),
        spec: Some(any("", format!(r#"{{"annotations":{{"io.kubernetes.cri.sandbox-id":"{ID}"}}}}"#))),
        ..Container::default()
    };
    let record = Record::new(sandbox.clone()).unwrap();
    assert_eq!(record.sandbox(), None);
    let labels = [("app", "shop"), ("io.kubernetes.pod.uid", "17b1"), ("resource.opentelemetry.io/service.name", "x")];
    assert_eq!(record.pod_labels(), map(&labels));
    let found = seen(sandbox, None, &[]).container;
    assert_eq!((found.name, found.pod.container, found.pod.uid.as_deref()), (None, None, Some("17b1")));
}

proptest::proptest! {
    #[test]
    fn any_record_is_taken(bytes: Vec<u8>, text in "\\PC{0,40}", topic in "/(tasks|containers)/(create|exit|delete)") {
        let body = Some(any("containerd.runc.v1.Options", bytes.clone()));
        event(&Envelope { namespace: text.clone(), topic, event: body.clone() });
        let extensions = CRI.iter().map(|key| ((*key).to_owned(), any("", text.clone()))).collect();
        let spec = Some(any("", format!(r#"{{"linux":{{"cgroupsPath":{text:?}}}}}"#)));
        let runtime = Some(Runtime { options: body });
        let container = Container { id: "a".to_owned(), image: text, extensions, spec, runtime, ..Container::default() };
        seen(container, Some("sha256:1"), &[]);
        if let Ok(container) = Container::decode(bytes.as_slice()) {
            std::hint::black_box(Record::new(container).is_some());
        }
    }
}
