//! What the daemon says, in its words, comes in; what is wanted of it comes out. Every field may be missing.

use std::collections::HashMap;

use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary, EventMessage, EventMessageTypeEnum,
    ImageInspect,
};

use crate::enrich::container::{Container, Described, Labels};

/// The events asked for. `died` and `remove` are Podman's words for `die` and `destroy`, which its filter goes by.
pub const EVENTS: [&str; 13] = [
    "create", "start", "rename", "die", "died", "destroy", "remove", "tag", "untag", "delete", "pull", "import", "load",
];
/// What is among the labels in an event and is none.
const NO_LABELS: [&str; 3] = ["oldName", "containerExitCode", "podId"];

/// A container as one message of the daemon shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Without its image; by its labels alone unless it was inspected.
    pub container: Container,
    /// Image reference as it was given to `docker run`.
    pub image: Option<String>,
    pub image_id: Option<String>,
    /// The message shows all of its configuration, as no other one does.
    pub inspected: bool,
    /// Its first process, where the message says.
    pub pid: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    Described(Box<Seen>),
    Died { id: String },
    Destroyed { id: String },
    ImagesChanged,
}

/// Facts of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub id: Option<String>,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
}

pub fn event(runtime: &'static str, message: EventMessage, labels: &Labels) -> Option<Happened> {
    let action = message.action?;
    let kind = message.typ?;
    if kind == EventMessageTypeEnum::IMAGE {
        return Some(Happened::ImagesChanged);
    }
    (kind == EventMessageTypeEnum::CONTAINER).then(|| container_event(runtime, &action, message.actor?, labels))?
}

fn container_event(
    runtime: &'static str,
    action: &str,
    actor: bollard::models::EventActor,
    labels: &Labels,
) -> Option<Happened> {
    let id = actor.id.filter(|id| !id.is_empty())?;
    match action {
        "create" | "start" | "rename" => {
            // Docker lays its own attributes over the labels; a label of the same name is lost here.
            let mut attributes = actor.attributes.unwrap_or_default();
            attributes.retain(|key, _| !NO_LABELS.contains(&key.as_str()));
            let name = attributes.remove("name").and_then(plain_name);
            let image = attributes.remove("image").filter(|image| !image.is_empty());
            let container = container(runtime, id, name, Vec::new(), attributes, labels);
            Some(Happened::Described(Box::new(Seen { container, image, image_id: None, inspected: false, pid: None })))
        }
        "die" | "died" => Some(Happened::Died { id }),
        "destroy" | "remove" => Some(Happened::Destroyed { id }),
        _ => None,
    }
}

pub fn summary(runtime: &'static str, summary: ContainerSummary, labels: &Labels) -> Option<Seen> {
    let id = summary.id.filter(|id| !id.is_empty())?;
    // Links add names of the form `/other/alias`.
    let name = summary.names.unwrap_or_default().into_iter().filter_map(plain_name).find(|name| !name.contains('/'));
    Some(Seen {
        container: container(runtime, id, name, Vec::new(), summary.labels.unwrap_or_default(), labels),
        image: summary.image.filter(|image| !image.is_empty()),
        image_id: summary.image_id.filter(|id| !id.is_empty()),
        inspected: false,
        pid: None,
    })
}

/// The container, and whether it may have processes.
pub fn inspected(runtime: &'static str, response: ContainerInspectResponse, labels: &Labels) -> Option<(Seen, bool)> {
    let (status, pid) = response.state.map(|state| (state.status, state.pid)).unwrap_or_default();
    let pid = pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
    let over = matches!(
        status,
        Some(ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD | ContainerStateStatusEnum::REMOVING)
    );
    let id = response.id.filter(|id| !id.is_empty())?;
    let name = response.name.and_then(plain_name);
    let config = response.config.unwrap_or_default();
    let env = config.env.unwrap_or_default();
    let seen = Seen {
        container: container(runtime, id, name, env, config.labels.unwrap_or_default(), labels),
        image: config.image.filter(|image| !image.is_empty()),
        image_id: response.image.filter(|id| !id.is_empty()),
        inspected: true,
        pid,
    };
    Some((seen, !over))
}

fn container(
    runtime: &'static str,
    id: String,
    name: Option<String>,
    env: Vec<String>,
    labels: HashMap<String, String>,
    kept: &Labels,
) -> Container {
    Container::described(runtime, Described { id, name, labels, env, ..Described::default() }, kept)
}

pub fn image(image: ImageInspect) -> Facts {
    // Older daemons list what has no name as `<none>`.
    let named = |names: Option<Vec<String>>| {
        let mut names = names.unwrap_or_default();
        names.retain(|name| !name.starts_with("<none>"));
        names
    };
    Facts {
        id: image.id.filter(|id| !id.is_empty()),
        repo_tags: named(image.repo_tags),
        repo_digests: named(image.repo_digests),
    }
}

fn plain_name(name: String) -> Option<String> {
    let plain = name.strip_prefix('/').map(ToOwned::to_owned).unwrap_or(name);
    (!plain.is_empty()).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(json: &str, allowed: &[&str]) -> Option<Happened> {
        let sent = allowed.iter().map(ToString::to_string).collect();
        let labels = Labels { sent, matched: Vec::new() };
        event("docker", serde_json::from_str(json).unwrap(), &labels)
    }

    #[test]
    fn a_create_event_describes_its_container() {
        let json = r#"{"Type":"container","Action":"create","Actor":{"ID":"2e9a","Attributes":
            {"com.example.a":"b","secret":"c","image":"r:5000/i:t","name":"web"}},"timeNano":1795373112419790340}"#;
        let Some(Happened::Described(seen)) = seen(json, &["com.example.*"]) else { panic!() };
        let container = seen.container;
        assert_eq!(
            (container.id.as_str(), container.name.as_deref(), seen.image.as_deref()),
            ("2e9a", Some("web"), Some("r:5000/i:t"))
        );
        assert_eq!(container.labels, [("com.example.a".to_owned(), "b".to_owned())]);
    }

    #[test]
    fn docker_s_own_attributes_are_no_labels() {
        let json = r#"{"Type":"container","Action":"rename","Actor":{"ID":"2e9a","Attributes":
            {"image":"i","name":"new","oldName":"/old"}}}"#;
        let Some(Happened::Described(seen)) = seen(json, &["*"]) else { panic!() };
        assert_eq!((seen.container.name.as_deref(), seen.container.labels.len()), (Some("new"), 0));
    }

    #[test]
    fn podman_s_own_words_are_understood() {
        let json = r#"{"status":"create","id":"2e9a","from":"i","Type":"container","Action":"create","Actor":{"ID":"2e9a",
            "Attributes":{"containerExitCode":"0","image":"localhost/i:t","name":"a","podId":"","team":"core"}}}"#;
        let Some(Happened::Described(seen)) = seen(json, &["*"]) else { panic!() };
        assert_eq!(seen.container.labels, [("team".to_owned(), "core".to_owned())]);
        let of = |action: &str| {
            let json = format!(r#"{{"Type":"container","Action":"{action}","Actor":{{"ID":"a"}}}}"#);
            event("podman", serde_json::from_str(&json).unwrap(), &Labels::default())
        };
        assert_eq!(of("died"), Some(Happened::Died { id: "a".to_owned() }));
        assert_eq!(of("remove"), Some(Happened::Destroyed { id: "a".to_owned() }));
    }

    #[test]
    fn events_with_holes_are_passed_over() {
        for json in [
            "{}",
            r#"{"Type":"container"}"#,
            r#"{"Type":"container","Action":"create"}"#,
            r#"{"Type":"container","Action":"create","Actor":{}}"#,
            r#"{"Type":"container","Action":"x","Actor":{"ID":"a"}}"#,
            r#"{"Type":"volume","Action":"create","Actor":{"ID":"a"}}"#,
        ] {
            assert_eq!(seen(json, &["*"]), None, "{json}");
        }
    }

    #[test]
    fn a_listed_name_is_the_container_s_own_and_not_a_link_s() {
        let json = r#"{"Id":"a","Names":["/web/db","/db"],"Image":"i","ImageID":"sha256:1"}"#;
        let seen = summary("docker", serde_json::from_str(json).unwrap(), &Labels::default()).unwrap();
        assert_eq!(seen.container.name.as_deref(), Some("db"));
    }

    #[test]
    fn labels_tell_the_service_whether_they_are_allowed_or_not() {
        let json = r#"{"Type":"container","Action":"start","Actor":{"ID":"a","Attributes":
            {"com.docker.swarm.service.name":"shop_web","com.docker.stack.namespace":"shop","name":"x"}}}"#;
        let Some(Happened::Described(seen)) = seen(json, &[]) else { panic!() };
        let Container { labels, service, .. } = seen.container;
        assert_eq!((service.name.as_deref(), service.namespace.as_deref()), (Some("shop_web"), Some("shop")));
        assert!(labels.is_empty() && !seen.inspected);
    }

    #[test]
    fn of_the_environment_nothing_is_kept_but_what_names_the_service() {
        let json = r#"{"Id":"a","Name":"/web","Image":"sha256:1","State":{"Status":"created"},"Config":{"Image":"i",
            "Env":["PASSWORD=hunter2","OTEL_SERVICE_NAME=checkout","OTEL_EXPORTER_OTLP_HEADERS=key=hunter2",
            "OTEL_RESOURCE_ATTRIBUTES=team=a","XOTEL_SERVICE_NAME=hunter2","hunter2"],
            "Labels":{"com.docker.compose.service":"web","com.docker.compose.project":"site"}}}"#;
        let (seen, running) = inspected("docker", serde_json::from_str(json).unwrap(), &Labels::default()).unwrap();
        assert!(running && seen.inspected && !format!("{seen:?}").contains("hunter2"));
        let service = seen.container.service;
        assert_eq!((service.name.as_deref(), service.namespace.as_deref()), (Some("checkout"), Some("site")));
        assert_eq!(service.attributes, [("team".to_owned(), "a".to_owned())]);
    }
}
