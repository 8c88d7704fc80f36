//! The host, or one of its containers, as the bytes of an OTLP `Resource`.

use std::fs;
use std::path::Path;

use crate::config;
use crate::enrich::container::Container;
use crate::model::{proto, semconv};

const UNKNOWN_SERVICE: &str = "unknown_service";
const AGENT_SERVICE: &str = "namespan";
/// So begin the keys that are not a container's to choose: they say whose a record is, and who found out.
const IDENTITY: [&str; 8] = ["cloud.", "container.", "host.", "k8s.", "namespan.", "os.", "process.", "telemetry."];

/// The machine, as far as it could be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Machine id.
    pub id: Option<String>,
    pub name: Option<String>,
    /// In the words of the semantic conventions: `amd64`, `arm64`, ...
    pub arch: String,
    /// The kernel's release.
    pub os_version: String,
}

impl Host {
    /// This machine, by `uname(2)` and its machine id.
    #[must_use]
    pub fn detect() -> Self {
        Self::detect_in(Path::new("/"))
    }

    /// As [`detect`](Self::detect), with the machine id of a root directory that is mounted elsewhere.
    #[must_use]
    pub fn detect_in(root: &Path) -> Self {
        let uname = rustix::system::uname();
        Self {
            id: ["etc/machine-id", "var/lib/dbus/machine-id"].iter().find_map(|path| machine_id(&root.join(path))),
            name: Some(uname.nodename().to_string_lossy().into_owned()).filter(|name| !name.is_empty()),
            arch: arch(&uname.machine().to_string_lossy()).to_owned(),
            os_version: uname.release().to_string_lossy().into_owned(),
        }
    }
}

/// `uninitialized` is what systemd puts there until the first boot is over.
fn machine_id(path: &Path) -> Option<String> {
    let id = fs::read_to_string(path).ok()?;
    let id = id.trim();
    (id.len() == 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit())).then(|| id.to_owned())
}

fn arch(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" | "aarch64_be" => "arm64",
        "i386" | "i486" | "i586" | "i686" => "x86",
        "ppc" => "ppc32",
        "ppc64le" => "ppc64",
        other if other.starts_with("arm") => "arm32",
        other => other,
    }
}

/// Whose records a resource is for.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// Processes outside of containers, with the service that their systemd unit is, if any.
    Host(Option<&'a str>),
    Container(&'a Container),
    /// Namespan itself.
    Agent,
}

/// The bytes of a `Resource`. What the user has set wins over what was found, but for the service's name, which is not that
/// of every container.
#[must_use]
pub fn encode_resource(host: &Host, subject: Subject<'_>, settings: &config::Resource) -> Vec<u8> {
    let mut resource = Attributes { user: &settings.attributes, out: Vec::new() };
    match subject {
        Subject::Container(container) => container_attributes(&mut resource, container),
        Subject::Host(unit) => {
            resource.text(semconv::SERVICE_NAME, host_service(settings).or(unit).unwrap_or(UNKNOWN_SERVICE));
        }
        Subject::Agent => {
            resource.text(semconv::SERVICE_NAME, host_service(settings).unwrap_or(AGENT_SERVICE));
            resource.text(semconv::SERVICE_VERSION, semconv::VERSION);
            resource.optional(semconv::SERVICE_INSTANCE_ID, host.id.as_deref().or(host.name.as_deref()));
        }
    }
    resource.optional(semconv::HOST_ID, host.id.as_deref());
    resource.optional(semconv::HOST_NAME, host.name.as_deref());
    resource.text(semconv::HOST_ARCH, &host.arch);
    resource.text(semconv::OS_TYPE, "linux");
    resource.text(semconv::OS_VERSION, &host.os_version);
    resource.text(semconv::TELEMETRY_DISTRO_NAME, "namespan");
    resource.text(semconv::TELEMETRY_DISTRO_VERSION, semconv::VERSION);
    resource.finish()
}

/// As the user has set it.
fn host_service(settings: &config::Resource) -> Option<&str> {
    let attribute = settings.attributes.iter().rev().find(|(key, _)| key == semconv::SERVICE_NAME);
    let found = settings.service_name.as_deref().or(attribute.map(|(_, value)| value.as_str()));
    found.filter(|name| !name.is_empty())
}

fn container_attributes(resource: &mut Attributes<'_>, container: &Container) {
    resource.text(semconv::SERVICE_NAME, container_service(container));
    resource.optional(semconv::SERVICE_NAMESPACE, container.service.namespace.as_deref());
    resource.text(semconv::CONTAINER_ID, &container.id);
    resource.optional(semconv::CONTAINER_NAME, container.name.as_deref());
    resource.text(semconv::CONTAINER_RUNTIME_NAME, container.runtime);
    resource.optional(semconv::CONTAINER_NAMESPACE, container.namespace.as_deref());
    resource.optional(semconv::CONTAINER_USER_ID, container.user.map(|user| user.to_string()).as_deref());
    if let Some(image) = &container.image {
        resource.text(semconv::CONTAINER_IMAGE_NAME, &image.name);
        resource.texts(semconv::CONTAINER_IMAGE_TAGS, &image.tags);
        resource.optional(semconv::CONTAINER_IMAGE_ID, image.id.as_deref());
        resource.texts(semconv::CONTAINER_IMAGE_REPO_DIGESTS, &image.repo_digests);
    }
    resource.optional(semconv::K8S_POD_UID, container.pod.uid.as_deref());
    resource.optional(semconv::K8S_POD_NAME, container.pod.name.as_deref());
    resource.optional(semconv::K8S_NAMESPACE_NAME, container.pod.namespace.as_deref());
    resource.optional(semconv::K8S_CONTAINER_NAME, container.pod.container.as_deref());
    for (key, value) in &container.labels {
        resource.any_text(&format!("{}{key}", semconv::CONTAINER_LABEL_PREFIX), value);
    }
    for (key, value) in &container.service.attributes {
        if !is_ours(key) {
            resource.any_text(key, value);
        }
    }
}

/// Whether an attribute of this key is written, or left out, whatever a container says.
fn is_ours(key: &str) -> bool {
    key.is_empty()
        || [semconv::SERVICE_NAME, semconv::SERVICE_NAMESPACE].contains(&key)
        || IDENTITY.iter().any(|prefix| key.starts_with(prefix))
}

/// Never the container's name, which is random where nobody has chosen it: it would be a new service each time.
fn container_service(container: &Container) -> &str {
    let image = container.image.as_ref().map(|image| image.name.rsplit('/').next().unwrap_or_default());
    container.service.name.as_deref().or(image).filter(|name| !name.is_empty()).unwrap_or(UNKNOWN_SERVICE)
}

/// What was found, leaving room for what the user has set.
struct Attributes<'a> {
    user: &'a [(String, String)],
    out: Vec<u8>,
}

impl Attributes<'_> {
    fn optional(&mut self, key: &str, value: Option<&str>) {
        self.text(key, value.unwrap_or_default());
    }

    /// Left out if empty.
    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.any_text(key, value);
        }
    }

    fn any_text(&mut self, key: &str, value: &str) {
        self.put(key, proto::Value::Text(value.as_bytes()));
    }

    /// Left out if empty.
    fn texts(&mut self, key: &str, values: &[String]) {
        let mut elements = Vec::new();
        for value in values {
            proto::element(&mut elements, proto::Value::Text(value.as_bytes()));
        }
        if !elements.is_empty() {
            self.put(key, proto::Value::Array(&elements));
        }
    }

    fn put(&mut self, key: &str, value: proto::Value<'_>) {
        if key == semconv::SERVICE_NAME || !self.user.iter().any(|(user, _)| user == key) {
            proto::key_value(&mut self.out, 1, key, value);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        for (index, (key, value)) in self.user.iter().enumerate() {
            let repeated = self.user[index + 1..].iter().any(|(later, _)| later == key);
            if !key.is_empty() && !repeated && key != semconv::SERVICE_NAME {
                proto::key_value(&mut self.out, 1, key, proto::Value::Text(value.as_bytes()));
            }
        }
        self.out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value};
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use prost::Message as _;

    use super::*;
    use crate::enrich::container::{Image, Pod, Service};

    fn host() -> Host {
        Host { id: Some("a".repeat(32)), name: Some("box".into()), arch: "amd64".into(), os_version: "6.1.0".into() }
    }

    fn container() -> Container {
        Container {
            name: Some("quirky_noether".into()),
            image: Some(Image {
                name: "ghcr.io/acme/shop".into(),
                tags: vec!["1.2".into(), "latest".into()],
                id: Some("sha256:0".into()),
                repo_digests: vec![],
            }),
            labels: vec![("team".into(), String::new())],
            ..Container::of_id("c".repeat(64), "docker")
        }
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn decoded(container: Option<&Container>, settings: &config::Resource) -> BTreeMap<String, String> {
        let bytes = encode_resource(&host(), container.map_or(Subject::Host(None), Subject::Container), settings);
        let resource = Resource::decode(&*bytes).unwrap();
        assert_eq!(resource.encode_to_vec(), bytes);
        let count = resource.attributes.len();
        let map: BTreeMap<_, _> =
            resource.attributes.into_iter().map(|pair| (pair.key, text(pair.value.unwrap()))).collect();
        assert_eq!(map.len(), count, "keys are unique");
        map
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "whatever else fails the test")]
    fn text(value: AnyValue) -> String {
        match value.value.unwrap() {
            any_value::Value::StringValue(text) => text,
            any_value::Value::ArrayValue(array) => array.values.into_iter().map(text).collect::<Vec<_>>().join(","),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_container_carries_its_host_and_its_image() {
        let found = decoded(Some(&container()), &config::Resource::default());
        assert_eq!(found["container.id"], "c".repeat(64));
        assert_eq!(found["container.runtime.name"], "docker");
        assert_eq!(found["container.image.name"], "ghcr.io/acme/shop");
        assert_eq!(found["container.image.tags"], "1.2,latest");
        assert_eq!(found["container.label.team"], "");
        assert_eq!((found["host.name"].as_str(), found["os.type"].as_str()), ("box", "linux"));
        assert_eq!(found["telemetry.distro.name"], "namespan");
        assert!(!found.contains_key("container.image.repo_digests"));
    }

    #[test]
    fn a_service_is_named_by_its_configuration_then_by_the_image_then_not_at_all() {
        let settings = config::Resource { service_name: Some("mine".into()), ..config::Resource::default() };
        let mut container = container();
        assert_eq!(decoded(Some(&container), &settings)["service.name"], "shop");
        container.service = Service { name: Some("web".into()), namespace: Some("site".into()), ..Service::default() };
        let found = decoded(Some(&container), &settings);
        assert_eq!((found["service.name"].as_str(), found["service.namespace"].as_str()), ("web", "site"));
        let bare = Container::of_id(container.id, "docker");
        assert_eq!(decoded(Some(&bare), &settings)["service.name"], "unknown_service");
        assert_eq!(decoded(None, &settings)["service.name"], "mine");
        assert_eq!(decoded(None, &config::Resource::default())["service.name"], "unknown_service");
    }

    #[test]
    fn what_the_user_sets_wins_but_names_no_container_a_service() {
        let attributes = pairs(&[("host.name", "x"), ("team", "a"), ("team", "b"), ("service.name", "s")]);
        let settings = config::Resource { service_name: None, attributes };
        let found = decoded(Some(&container()), &settings);
        assert_eq!((found["host.name"].as_str(), found["team"].as_str()), ("x", "b"));
        assert_eq!(found["service.name"], "shop");
        assert_eq!(decoded(None, &settings)["service.name"], "s");
    }

    #[test]
    fn a_container_in_a_pod_says_so() {
        let pod = Pod {
            uid: Some("17b1".into()),
            name: Some("shop-0".into()),
            namespace: Some("prod".into()),
            container: Some("web".into()),
        };
        let found = decoded(Some(&Container { pod, ..container() }), &config::Resource::default());
        let keys = ["k8s.pod.uid", "k8s.pod.name", "k8s.namespace.name", "k8s.container.name"];
        assert_eq!(keys.map(|key| found[key].as_str()), ["17b1", "shop-0", "prod", "web"]);
        let found = decoded(Some(&container()), &config::Resource::default());
        assert!(!found.keys().any(|key| key.starts_with("k8s.")));
    }

    #[test]
    fn what_a_container_says_of_itself_is_sent_but_does_not_say_who_it_is() {
        let attributes = pairs(&[
            ("deployment.environment.name", "test"),
            ("service.version", "1\u{7}\0"),
            ("hostile", ""),
            ("team", "theirs"),
            ("", "x"),
            ("service.name", "x"),
            ("service.namespace", "x"),
            ("container.id", "x"),
            ("container.label.team", "x"),
            ("host.name", "x"),
            ("k8s.pod.uid", "x"),
            ("process.pid", "1"),
            ("os.type", "x"),
            ("telemetry.distro.name", "x"),
            ("namespan.x", "x"),
            ("cloud.region", "x"),
        ]);
        let said = Container { service: Service { attributes, ..Service::default() }, ..container() };
        let settings = config::Resource { service_name: None, attributes: pairs(&[("team", "ours")]) };
        let (mut found, mut plain) = (decoded(Some(&said), &settings), decoded(Some(&container()), &settings));
        assert_eq!((found.remove("team"), plain.remove("team")), (Some("ours".into()), Some("ours".into())));
        for (key, value) in [("deployment.environment.name", "test"), ("service.version", "1\u{7}\0"), ("hostile", "")]
        {
            assert_eq!(found.remove(key).as_deref(), Some(value), "{key}");
        }
        assert_eq!(found, plain);
    }

    #[test]
    fn machine_ids_come_from_etc_then_from_dbus() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Host::detect_in(root.path()).id, None);
        for directory in ["etc", "var/lib/dbus"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        fs::write(root.path().join("etc/machine-id"), "uninitialized\n").unwrap();
        fs::write(root.path().join("var/lib/dbus/machine-id"), format!("{}\n", "0a".repeat(16))).unwrap();
        assert_eq!(Host::detect_in(root.path()).id, Some("0a".repeat(16)));
        fs::write(root.path().join("etc/machine-id"), "1b".repeat(16)).unwrap();
        assert_eq!(Host::detect_in(root.path()).id, Some("1b".repeat(16)));
    }

    #[test]
    fn architectures_have_the_names_of_the_conventions() {
        let names = ["x86_64", "aarch64", "armv7l", "i686", "ppc64le", "s390x", "riscv64"].map(arch);
        assert_eq!(names, ["amd64", "arm64", "arm32", "x86", "ppc64", "s390x", "riscv64"]);
    }
}
