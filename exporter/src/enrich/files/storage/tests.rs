use std::fs;

use super::*;
use crate::enrich::container::{Container, Labels, Pod};

struct Host {
    home: tempfile::TempDir,
    id: String,
}

impl Host {
    fn new(containers: &str, config: &str) -> Self {
        let host = Self { home: tempfile::tempdir().unwrap(), id: "ab".repeat(32) };
        let bundle = host.path(&format!("graph/vfs-containers/{}/userdata", host.id));
        for folder in [&bundle, &host.path("graph/vfs-images"), &host.path("run")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(host.path("graph/vfs-containers/containers.json"), containers.replace("ID", &host.id)).unwrap();
        fs::write(bundle.join("config.json"), config).unwrap();
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.home.path().join(path)
    }

    fn podman(&self) -> Storage {
        Storage::podman(self.path("graph"), self.path("run"))
    }

    fn crio(&self) -> Storage {
        Storage::crio(self.path("graph"), self.path("run"))
    }
}

fn list(layout: &Storage) -> io::Result<Vec<Entry>> {
    layout.list(&layout.base()?.folder("vfs-containers")?)
}

fn shown(layout: &Storage) -> io::Result<Container> {
    let found = layout.describe("vfs-containers", &list(layout)?[0])?;
    Ok(Container::described(layout.runtime(), found.described, &Labels::default()))
}

const PODMAN: &str = r#"{"annotations":{"io.container.manager":"libpod"},"process":{"env":["OTEL_SERVICE_NAME=shop"]},
    "linux":{"cgroupsPath":"/libpod_parent/libpod-x"}}"#;
const LISTED: &str = r#"[{"id":"ID","names":["web"],"image":"12",
    "metadata":"{\"image-name\":\"localhost/i:t\",\"name\":\"web\"}"}]"#;

#[test]
fn podman_s_containers_have_names_and_images() {
    let host = Host::new(LISTED, PODMAN);
    let images = r#"[{"id":"11","names":["localhost/i:u"]},
        {"id":"12","digest":"sha256:34","names":["localhost/i:t","localhost/i:v","localhost/j:w"]}]"#;
    fs::write(host.path("graph/vfs-images/images.json"), images).unwrap();
    let container = shown(&host.podman()).unwrap();
    assert_eq!((container.name.as_deref(), container.service.name.as_deref()), (Some("web"), Some("shop")));
    let image = container.image.unwrap();
    assert_eq!((image.name.as_str(), image.id.as_deref()), ("localhost/i", Some("sha256:12")));
    assert_eq!((image.tags, image.repo_digests), (vec!["t".into(), "v".into()], vec!["localhost/i@sha256:34".into()]));
    let found = host.podman().describe("vfs-containers", &list(&host.podman()).unwrap()[0]).unwrap();
    assert_eq!(found.cgroup.as_deref(), Some("/libpod_parent/libpod-x"));
}

#[test]
fn two_runtimes_that_share_a_folder_tell_of_their_own_containers() {
    let config = r#"{"annotations":{"io.container.manager":"cri-o","io.kubernetes.container.name":"web",
        "io.kubernetes.pod.name":"shop-0","io.kubernetes.pod.namespace":"prod","io.kubernetes.pod.uid":"17b1",
        "io.kubernetes.cri-o.Labels":"{\"app\":\"shop\",\"io.kubernetes.container.name\":\"web\"}"}}"#;
    let host = Host::new(&LISTED.replace("web", "k8s_web_shop-0_prod_17b1_0"), config);
    assert!(shown(&host.podman()).is_err());
    let container = shown(&host.crio()).unwrap();
    let text = |text: &str| Some(text.to_owned());
    let pod = Pod { uid: text("17b1"), name: text("shop-0"), namespace: text("prod"), container: text("web") };
    assert_eq!((container.runtime, container.name.as_deref(), container.pod), ("cri-o", Some("web"), pod));
    assert!(shown(&Host::new(LISTED, PODMAN).crio()).is_err());
}

#[test]
fn of_a_list_only_containers_are_taken() {
    let metadata = r#""metadata":"{}""#;
    let list_of = |containers: &str| list(&Host::new(containers, PODMAN).podman());
    assert_eq!(
        list_of(&format!(r#"[{{"id":"../../etc",{metadata}}},{{"id":"",{metadata}}},{{"id":"ID"}}]"#)).unwrap(),
        []
    );
    let huge = format!(r#"[{{"id":"ID","names":["{}"],"metadata":"no"}}]"#, "x".repeat(TEXT_MAX + 1));
    assert_eq!(list_of(&huge).unwrap()[0].name, None);
    for broken in ["", "[", "{}", "null", r#"[{"id":7}]"#, "[\"\\ud800\"]"] {
        assert!(list_of(broken).is_err(), "{broken}");
    }
}

#[test]
fn of_an_endless_list_the_newest_are_taken() {
    let item = |number: usize| format!(r#"{{"id":"{number:064x}","metadata":"{{}}"}}"#);
    let all: Vec<_> = (0..ENTRIES + 2).map(item).collect();
    let listed = list(&Host::new(&format!("[{}]", all.join(",")), PODMAN).podman()).unwrap();
    assert_eq!((listed.len(), listed[0].id.as_str()), (ENTRIES, format!("{:064x}", 2).as_str()));
}

#[test]
fn a_user_s_word_on_cgroups_and_processes_counts_for_nothing() {
    let host = Host::new(LISTED, PODMAN);
    let user = rustix::process::geteuid().as_raw();
    let roots = |name: &str| Root::of_user(user, host.home.path().to_owned(), name);
    let userdata = host.path(&format!("run/vfs-containers/{}/userdata", host.id));
    fs::create_dir_all(&userdata).unwrap();
    fs::write(userdata.join("pidfile"), std::process::id().to_string()).unwrap();
    let parent = rustix::process::getppid().unwrap().as_raw_nonzero().get();
    fs::write(userdata.join("conmon.pid"), parent.to_string()).unwrap();
    let layout = Storage::of_user(user, roots("graph"), vec![roots("missing"), roots("run")]);
    let found = layout.describe("vfs-containers", &list(&layout).unwrap()[0]).unwrap();
    assert_eq!((found.described.user, found.cgroup, found.process), (Some(user), None, None));
    let root = host.podman().describe("vfs-containers", &list(&layout).unwrap()[0]).unwrap();
    assert_eq!(root.process.map(|process| process.pid), Some(std::process::id()));
}
