use super::*;
use crate::enrich::container::{Container, Labels, Pod};

const TASKS: &str = "io.containerd.runtime.v2.task";

fn shown(group: &str, id: &str, config: &str) -> (Container, Option<String>) {
    let state = tempfile::tempdir().unwrap();
    let bundle = state.path().join(TASKS).join(group).join(id);
    std::fs::create_dir_all(&bundle).unwrap();
    std::fs::write(bundle.join("config.json"), config).unwrap();
    let entry = Entry { id: id.to_owned(), ..Entry::default() };
    let found = Containerd::new(state.path()).describe(group, &entry).unwrap();
    let labels = Labels { sent: vec!["*".to_owned()], matched: Vec::new() };
    (Container::described("containerd", found.described, &labels), found.cgroup)
}

#[test]
fn what_ctr_runs_is_named_by_its_id_and_its_labels_are_annotations() {
    let (container, cgroup) = shown(
        "default",
        "web",
        r#"{"process":{"env":["PATH=/bin","OTEL_SERVICE_NAME=shop"]},"annotations":{"team":"core"},
            "linux":{"cgroupsPath":"/default/web"}}"#,
    );
    assert_eq!((container.key().as_ref(), container.name.as_deref()), ("containerd/default/web", Some("web")));
    assert_eq!(container.labels, [("team".to_owned(), "core".to_owned())]);
    assert_eq!((container.service.name.as_deref(), cgroup.as_deref()), (Some("shop"), Some("/default/web")));
}

#[test]
fn what_kubernetes_runs_is_named_as_it_says() {
    let id = "ab".repeat(32);
    let (container, cgroup) = shown(
        "k8s.io",
        &id,
        r#"{"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.container-name":"web",
            "io.kubernetes.cri.sandbox-name":"shop-0","io.kubernetes.cri.sandbox-namespace":"prod",
            "io.kubernetes.cri.sandbox-uid":"17b1","io.kubernetes.cri.image-name":"docker.io/library/nginx:1.27"},
            "linux":{"cgroupsPath":"kubepods-pod17b1.slice:cri-containerd:ab"}}"#,
    );
    let text = |text: &str| Some(text.to_owned());
    let pod = Pod { uid: text("17b1"), name: text("shop-0"), namespace: text("prod"), container: text("web") };
    assert_eq!((container.name.as_deref(), container.pod, cgroup), (Some("web"), pod, None));
    let image = container.image.unwrap();
    assert_eq!((image.name.as_str(), image.tags), ("docker.io/library/nginx", vec!["1.27".to_owned()]));
    assert!(container.labels.iter().all(|(key, _)| !key.contains("cri")), "{:?}", container.labels);
}

#[test]
fn what_nerdctl_runs_has_its_name() {
    let config = r#"{"annotations":{"nerdctl/name":"db","nerdctl/namespace":"default"}}"#;
    assert_eq!(shown("default", &"cd".repeat(32), config).0.name.as_deref(), Some("db"));
}

#[test]
fn docker_s_namespace_and_what_is_about_to_go_are_left_out() {
    let state = tempfile::tempdir().unwrap();
    for path in ["default/web", "default/.gone"] {
        std::fs::create_dir_all(state.path().join(TASKS).join(path)).unwrap();
    }
    let layout = Containerd::new(state.path());
    assert!(!layout.is_group("moby") && layout.is_group("k8s.io"));
    let listed = layout.list(&layout.base().unwrap().folder("default").unwrap()).unwrap();
    assert_eq!(listed, [Entry { id: "web".to_owned(), ..Entry::default() }]);
}
