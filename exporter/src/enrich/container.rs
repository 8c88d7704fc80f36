//! A container as its runtime describes it.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::config;
use crate::model::semconv::{SERVICE_NAME, SERVICE_NAMESPACE};

/// Longest name or value that is taken from a container's configuration, in bytes.
const VALUE_MAX: usize = 1024;
/// Longest name of a container, in bytes: hostnames end at 64, Kubernetes' names at 253.
const NAME_MAX: usize = 255;
/// Most labels that are sent of a container.
const LABELS_MAX: usize = 64;
/// Longest key of an attribute, in bytes.
const KEY_MAX: usize = 128;
/// Most attributes.
const ATTRIBUTES_MAX: usize = 32;
/// Longest list of attributes that is read, in bytes.
const LIST_MAX: usize = 32 << 10;

/// Labels that name a service, the first of them first.
const NAME_LABELS: [&str; 6] = [
    "resource.opentelemetry.io/service.name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/name",
    "com.docker.compose.service",
    "com.docker.swarm.service.name",
    POD_CONTAINER_LABEL,
];
/// Labels that name the group it belongs to.
const NAMESPACE_LABELS: [&str; 4] = [
    "resource.opentelemetry.io/service.namespace",
    "com.docker.compose.project",
    "com.docker.stack.namespace",
    POD_NAMESPACE_LABEL,
];
const POD_CONTAINER_LABEL: &str = "io.kubernetes.container.name";
const POD_NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// As its runtime has it: 64 hexadecimal digits for most, a free text for containerd's own clients, nspawn and LXC.
    pub id: String,
    /// `docker`, `containerd`, ...
    pub runtime: &'static str,
    /// containerd's namespace; `None` for other runtimes, and where it is not known.
    pub namespace: Option<String>,
    /// Whose container it is, if it is not root's: the user id of a rootless runtime.
    pub user: Option<u32>,
    /// `None`: no runtime has told (yet).
    pub name: Option<String>,
    pub image: Option<Image>,
    /// Those that are sent, by key.
    pub labels: Vec<(String, String)>,
    /// Those that filters ask for, by key.
    pub matched: Vec<(String, String)>,
    pub service: Service,
    pub pod: Pod,
}

/// What a runtime says of a container, in the same words for all of them. Everything but the id may be missing.
#[derive(Clone, Debug, Default)]
pub struct Described {
    pub id: String,
    pub namespace: Option<String>,
    pub user: Option<u32>,
    pub name: Option<String>,
    pub image: Option<Image>,
    pub labels: HashMap<String, String>,
    /// The environment of its first process, as `KEY=value`; all but two variables are forgotten.
    pub env: Vec<String>,
    /// `None`: as the labels say.
    pub pod: Option<Pod>,
}

impl Container {
    /// As its cgroup path tells of it.
    #[must_use]
    pub fn of_id(id: String, runtime: &'static str) -> Self {
        Self {
            id,
            runtime,
            namespace: None,
            user: None,
            name: None,
            image: None,
            labels: Vec::new(),
            matched: Vec::new(),
            service: Service::default(),
            pod: Pod::default(),
        }
    }

    /// As its runtime describes it, within the bounds of what is kept of a text.
    #[must_use]
    pub fn described(runtime: &'static str, described: Described, labels: &Labels) -> Self {
        let Described { id, namespace, user, name, image, labels: all, env, pod } = described;
        let service = Service::of(&env, &all);
        let pod = pod.map_or_else(|| Pod::of(&all), Pod::usable);
        let image = image.map(Image::bounded);
        let name = name.map(|name| bounded(name, NAME_MAX)).filter(|name| !name.is_empty());
        let (labels, matched) = labels.pick(all);
        Self { id, runtime, namespace, user, name, image, labels, matched, service, pod }
    }

    /// Its name among all containers of all runtimes of the host: an id of 64 digits says it all, but for what the users of
    /// a host say, which can be any id.
    #[must_use]
    pub fn key(&self) -> Cow<'_, str> {
        key(self.runtime, self.namespace.as_deref(), self.user, &self.id)
    }
}

/// As [`Container::key`].
#[must_use]
pub fn key<'a>(runtime: &str, namespace: Option<&str>, user: Option<u32>, id: &'a str) -> Cow<'a, str> {
    match user {
        Some(user) => format!("{user}/{runtime}/{id}").into(),
        None if is_full_id(id.as_bytes()) => id.into(),
        None => format!("{runtime}/{}/{id}", namespace.unwrap_or_default()).into(),
    }
}

type Pairs = Vec<(String, String)>;

/// Which labels are kept. `*` at the end of a key matches any rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Keys of labels to send.
    pub sent: Vec<String>,
    /// Keys that filters ask for.
    pub matched: Vec<String>,
}

impl Labels {
    #[must_use]
    pub fn sends(&self, key: &str) -> bool {
        self.sent.iter().any(|allowed| config::matches(allowed, key.as_bytes()))
    }

    /// Those to send, and those that filters ask for, each by key.
    fn pick(&self, labels: HashMap<String, String>) -> (Pairs, Pairs) {
        let (mut sent, mut matched) = (Vec::new(), Vec::new());
        for (key, value) in labels {
            let value = bounded(value, VALUE_MAX);
            if self.matched.contains(&key) {
                matched.push((key.clone(), value.clone()));
            }
            if self.sends(&key) && is_usable_key(&key) {
                sent.push((key, value));
            }
        }
        sent.sort_unstable();
        matched.sort_unstable();
        sent.truncate(LABELS_MAX);
        (sent, matched)
    }
}

/// A text of at most so many bytes.
fn bounded(mut text: String, bytes: usize) -> String {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// The service that a container is part of, as its configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// `OTEL_SERVICE_NAME`, else `service.name` of the attributes, else the first label that names one.
    pub name: Option<String>,
    /// `service.namespace` of the attributes, else the first label that names one.
    pub namespace: Option<String>,
    /// `OTEL_RESOURCE_ATTRIBUTES` as it is, by unique keys: what is not the container's to say is among them.
    pub attributes: Vec<(String, String)>,
}

impl Service {
    /// By the container's environment, of which nothing else is kept, as `KEY=value`, and by its labels.
    #[must_use]
    pub fn of(env: &[String], labels: &HashMap<String, String>) -> Self {
        let mut attributes = variable(env, "OTEL_RESOURCE_ATTRIBUTES").map(attributes).unwrap_or_default();
        let attribute = |key| attributes.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str());
        let first = |said: &[Option<&str>], named: &[&str]| {
            let said = said.iter().copied().flatten().find(|name| is_usable(name));
            said.or_else(|| named.iter().find_map(|key| label(labels, key))).map(ToOwned::to_owned)
        };
        let name = first(&[variable(env, "OTEL_SERVICE_NAME"), attribute(SERVICE_NAME)], &NAME_LABELS);
        let namespace = first(&[attribute(SERVICE_NAMESPACE)], &NAMESPACE_LABELS);
        attributes.retain(|(key, value)| is_usable_key(key) && value.len() <= VALUE_MAX);
        attributes.truncate(ATTRIBUTES_MAX);
        Self { name, namespace, attributes }
    }
}

/// The Kubernetes pod that a container is part of, as its labels say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub uid: Option<String>,
    pub name: Option<String>,
    pub namespace: Option<String>,
    /// What the pod calls the container.
    pub container: Option<String>,
}

impl Pod {
    #[must_use]
    pub fn of(labels: &HashMap<String, String>) -> Self {
        let label = |key| label(labels, key).map(ToOwned::to_owned);
        Self {
            uid: label("io.kubernetes.pod.uid"),
            name: label("io.kubernetes.pod.name"),
            namespace: label(POD_NAMESPACE_LABEL),
            container: label(POD_CONTAINER_LABEL),
        }
    }

    /// Without what is too long to be a name, whoever says it.
    fn usable(self) -> Self {
        let usable = |name: Option<String>| name.filter(|name| is_usable(name));
        let Self { uid, name, namespace, container } = self;
        Self { uid: usable(uid), name: usable(name), namespace: usable(namespace), container: usable(container) }
    }
}

/// The value that the container's first process finds: the last one. A variable without `=` is taken back.
fn variable<'a>(env: &'a [String], key: &str) -> Option<&'a str> {
    let mut entries = env.iter().rev().filter_map(|entry| entry.strip_prefix(key));
    entries.find(|rest| rest.is_empty() || rest.starts_with('='))?.strip_prefix('=')
}

fn attributes(list: &str) -> Vec<(String, String)> {
    Some(list).filter(|list| list.len() <= LIST_MAX).and_then(config::resource_attributes).unwrap_or_default()
}

fn label<'a>(labels: &'a HashMap<String, String>, key: &str) -> Option<&'a str> {
    labels.get(key).map(String::as_str).filter(|value| is_usable(value))
}

fn is_usable(name: &str) -> bool {
    name.len() <= VALUE_MAX && !name.trim().is_empty()
}

fn is_usable_key(key: &str) -> bool {
    key.len() <= KEY_MAX && !key.contains(char::is_control)
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Repository, without tag or digest.
    pub name: String,
    pub tags: Vec<String>,
    pub id: Option<String>,
    pub repo_digests: Vec<String>,
}

impl Image {
    /// As its reference tells of it.
    #[must_use]
    pub fn of(Reference { name, tag, digest }: Reference<'_>, id: Option<String>) -> Self {
        Self {
            name: name.to_owned(),
            tags: tag.map(ToOwned::to_owned).into_iter().collect(),
            id,
            repo_digests: digest.map(|digest| format!("{name}@{digest}")).into_iter().collect(),
        }
    }

    /// Registries take shorter ones, so this is none's.
    fn bounded(self) -> Self {
        let few = |mut texts: Vec<String>| {
            texts.retain(|text| text.len() <= VALUE_MAX);
            texts.truncate(LABELS_MAX);
            texts
        };
        let Self { name, tags, id, repo_digests } = self;
        let id = id.filter(|id| id.len() <= VALUE_MAX);
        Self { name: bounded(name, VALUE_MAX), tags: few(tags), id, repo_digests: few(repo_digests) }
    }
}

/// An image reference, taken apart: `registry:5000/a/b:tag@sha256:...`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference<'a> {
    /// Repository as written; empty where the reference is nothing but an image id.
    pub name: &'a str,
    pub tag: Option<&'a str>,
    /// `sha256:...`
    pub digest: Option<&'a str>,
}

impl<'a> Reference<'a> {
    /// Takes any text; what does not look like a reference becomes its name.
    #[must_use]
    pub fn parse(text: &'a str) -> Self {
        if is_image_id(text) {
            return Self { name: "", tag: None, digest: None };
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        // A colon before the last slash is a registry's port.
        match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => Self { name, tag: Some(tag), digest },
            _ => Self { name: rest, tag: None, digest },
        }
    }

    /// The repository as Docker writes it in its own lists: without the default registry.
    #[must_use]
    pub fn familiar_name(self) -> &'a str {
        let name = self.name.strip_prefix("index.docker.io/").or_else(|| self.name.strip_prefix("docker.io/"));
        name.map_or(self.name, |name| name.strip_prefix("library/").unwrap_or(name))
    }
}

/// Whether an image reference is an id: `sha256:...`, or hexadecimal digits as `docker images` shows them.
#[must_use]
pub fn is_image_id(text: &str) -> bool {
    text.starts_with("sha256:") || ((12..=64).contains(&text.len()) && is_lower_hex(text.as_bytes()))
}

/// Whether it is a full id: 64 hexadecimal digits.
#[must_use]
pub fn is_full_id(id: &[u8]) -> bool {
    id.len() == 64 && is_lower_hex(id)
}

pub(super) fn is_lower_hex(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_runtime_says_of_a_pod_and_an_image_has_bounds_too() {
        let long = "x".repeat(VALUE_MAX + 1);
        let pod = Pod { uid: Some(long.clone()), name: Some("web-0".to_owned()), ..Pod::default() };
        let image = Image::of(Reference::parse(&format!("{long}:{long}@sha256:ab")), Some(long.clone()));
        let described = Described { pod: Some(pod), image: Some(image), ..Described::default() };
        let container = Container::described("cri-o", described, &Labels::default());
        assert_eq!((container.pod.uid, container.pod.name.as_deref()), (None, Some("web-0")));
        let image = container.image.unwrap();
        assert_eq!(image, Image { name: long[1..].to_owned(), ..Image::default() });
    }

    fn labels(list: &[(&str, &str)]) -> HashMap<String, String> {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn service(env: &[&str], list: &[(&str, &str)]) -> Service {
        Service::of(&env.iter().map(ToString::to_string).collect::<Vec<_>>(), &labels(list))
    }

    fn listed(list: &str) -> Vec<(String, String)> {
        service(&[&format!("OTEL_RESOURCE_ATTRIBUTES={list}")], &[]).attributes
    }

    #[test]
    fn a_service_is_named_by_the_first_that_names_it() {
        let env =
            ["OTEL_SERVICE_NAME=variable", "OTEL_RESOURCE_ATTRIBUTES=service.name=attribute,service.namespace=ns"];
        let by_label = NAME_LABELS.map(|key| (key, key));
        let namespaces = NAMESPACE_LABELS.map(|key| (key, key));
        assert_eq!(service(&env, &by_label).name.as_deref(), Some("variable"));
        assert_eq!(service(&env[1..], &by_label).name.as_deref(), Some("attribute"));
        for (place, key) in NAME_LABELS.iter().enumerate() {
            assert_eq!(service(&[], &by_label[place..]).name.as_deref(), Some(*key));
        }
        assert_eq!(service(&env, &namespaces).namespace.as_deref(), Some("ns"));
        for (place, key) in NAMESPACE_LABELS.iter().enumerate() {
            assert_eq!(service(&[], &namespaces[place..]).namespace.as_deref(), Some(*key));
        }
        assert_eq!(service(&["PATH=/bin"], &[("other", "x")]), Service::default());
    }

    #[test]
    fn a_name_that_is_blank_or_huge_names_nothing() {
        let huge = "x".repeat(VALUE_MAX + 1);
        for name in ["", " ", &huge] {
            let encoded = name.replace(' ', "%20");
            let list = format!("OTEL_RESOURCE_ATTRIBUTES=service.name={encoded},service.namespace={encoded}");
            let labels = [("app.kubernetes.io/name", name), ("com.docker.compose.service", "web")];
            let found = service(&[&format!("OTEL_SERVICE_NAME={name}"), &list], &labels);
            assert_eq!((found.name.as_deref(), found.namespace), (Some("web"), None), "{name}");
        }
    }

    #[test]
    fn the_last_of_several_variables_holds() {
        let named = |env: &[&str]| service(env, &[]).name;
        assert_eq!(named(&["OTEL_SERVICE_NAME=a", "OTEL_SERVICE_NAME=b=c"]).as_deref(), Some("b=c"));
        assert_eq!(named(&["OTEL_SERVICE_NAME=a", "OTEL_SERVICE_NAME"]), None);
        assert_eq!(named(&["OTEL_SERVICE_NAMES=a", "XOTEL_SERVICE_NAME=a", "otel_service_name=a", "", "="]), None);
    }

    #[test]
    fn attributes_are_read_by_the_specification() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(listed("a=b%20c, d = e=f,a=%2C,"), [pair("a", ","), pair("d", "e=f")]);
        assert_eq!(listed("a=%00%1b,b=%C3%BC"), [pair("a", "\0\x1b"), pair("b", "\u{fc}")]);
        for wrong in ["a=b,c", "a=b,=c", "a=b,c=%zz", "a=b,c=%f", "a=b,c=%ff", "a=b,%ff=c"] {
            assert_eq!(listed(wrong), [], "{wrong}");
        }
        assert_eq!(service(&["OTEL_RESOURCE_ATTRIBUTES=service.name=a,%"], &[]), Service::default());
    }

    #[test]
    fn attributes_stay_within_their_bounds() {
        let (key, value) = ("k".repeat(KEY_MAX), "v".repeat(VALUE_MAX));
        let found = listed(&format!("{key}={value},{key}k=a,b={value}v,c%0a=d,e=f"));
        assert_eq!(found, [(key, value), ("e".to_owned(), "f".to_owned())]);
        let many: Vec<_> = (0..100).map(|number| format!("k{number}=v")).collect();
        let found = service(&[&format!("OTEL_RESOURCE_ATTRIBUTES={},service.name=last", many.join(","))], &[]);
        assert_eq!((found.attributes.len(), found.name.as_deref()), (ATTRIBUTES_MAX, Some("last")));
        let full = format!("{}a=b", ",".repeat(LIST_MAX - 3));
        assert_eq!(listed(&full).len(), 1);
        assert_eq!(listed(&format!(",{full}")), []);
    }

    #[test]
    fn a_pod_is_what_its_labels_say() {
        let found = Pod::of(&labels(&[
            ("io.kubernetes.container.name", "web"),
            ("io.kubernetes.pod.name", "shop-0"),
            ("io.kubernetes.pod.namespace", "prod"),
            ("io.kubernetes.pod.uid", "17b1"),
        ]));
        let parts = [&found.container, &found.name, &found.namespace, &found.uid].map(|part| part.as_deref());
        assert_eq!(parts, ["web", "shop-0", "prod", "17b1"].map(Some));
        assert_eq!(Pod::of(&labels(&[("io.kubernetes.pod.name", "")])), Pod::default());
    }

    fn parts(text: &str) -> (&str, Option<&str>, Option<&str>) {
        let reference = Reference::parse(text);
        (reference.name, reference.tag, reference.digest)
    }

    #[test]
    fn references_come_apart_as_docker_reads_them() {
        assert_eq!(parts("nginx"), ("nginx", None, None));
        assert_eq!(parts("nginx:1.27"), ("nginx", Some("1.27"), None));
        assert_eq!(parts("registry:5000/a/b"), ("registry:5000/a/b", None, None));
        assert_eq!(parts("registry:5000/a/b:t"), ("registry:5000/a/b", Some("t"), None));
        assert_eq!(parts("r:5000/a/b:t@sha256:ab"), ("r:5000/a/b", Some("t"), Some("sha256:ab")));
        assert_eq!(parts("a/b@sha256:ab"), ("a/b", None, Some("sha256:ab")));
        assert_eq!(parts(""), ("", None, None));
    }

    #[test]
    fn an_image_id_has_no_name() {
        assert_eq!(parts("sha256:d0203f329e3cdc44"), ("", None, None));
        assert_eq!(parts("d0203f329e3c"), ("", None, None));
        assert_eq!(parts("cafe"), ("cafe", None, None));
        assert_eq!(parts("D0203F329E3C"), ("D0203F329E3C", None, None));
    }

    #[test]
    fn the_default_registry_is_not_part_of_the_familiar_name() {
        assert_eq!(Reference::parse("docker.io/library/nginx:1").familiar_name(), "nginx");
        assert_eq!(Reference::parse("docker.io/a/b").familiar_name(), "a/b");
        assert_eq!(Reference::parse("ghcr.io/library/nginx").familiar_name(), "ghcr.io/library/nginx");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_taken(text in ".*") {
            let reference = Reference::parse(&text);
            proptest::prop_assert!(reference.name.len() <= text.len());
        }

        #[test]
        fn any_environment_is_taken(rest in "[=,%a-c0\\PC]{0,80}", label in ".*") {
            let found = service(&[&format!("OTEL_RESOURCE_ATTRIBUTES{rest}"), &rest], &[(NAME_LABELS[0], &label)]);
            proptest::prop_assert!(found.attributes.len() <= ATTRIBUTES_MAX);
        }
    }
}
