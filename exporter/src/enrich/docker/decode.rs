//! What the daemon says, in its words, comes in; what is wanted of it comes out. Every field may be missing.

use std::collections::HashMap;

use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary, EventMessage, EventMessageTypeEnum,
    ImageInspect,
};

use crate::config;
use crate::enrich::container::{Container, Pod, Service};

/// The events asked for.
pub const EVENTS: [&str; 11] =
    ["create", "start", "rename", "die", "destroy", "tag", "untag", "delete", "pull", "import", "load"];

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

/// Allowed label keys; `*` at the end matches any rest.
#[derive(Clone, Debug)]
pub struct Labels(pub Vec<String>);

impl Labels {
    fn allow(&self, key: &str) -> bool {
        self.0.iter().any(|allowed| config::matches(allowed, key.as_bytes()))
    }

    fn pick(&self, labels: HashMap<String, String>) -> Vec<(String, String)> {
        let mut picked: Vec<_> = labels.into_iter().filter(|(key, _)| self.allow(key)).collect();
        picked.sort_unstable();
        picked
    }
}

pub fn event(message: EventMessage, labels: &Labels) -> Option<Happened> {
    let action = message.action?;
    let kind = message.typ?;
    if kind == EventMessageTypeEnum::IMAGE {
        return Some(Happened::ImagesChanged);
    }
    (kind == EventMessageTypeEnum::CONTAINER).then(|| container_event(&action, message.actor?, labels))?
}

fn container_event(action: &str, actor: bollard::models::EventActor, labels: &Labels) -> Option<Happened> {
    let id = actor.id.filter(|id| !id.is_empty())?;
    match action {
        "create" | "start" | "rename" => {
            // Docker lays its own attributes over the labels; a label of the same name is lost here.
            let mut attributes = actor.attributes.unwrap_or_default();
            attributes.remove("oldName");
            let name = attributes.remove("name").and_then(plain_name);
            let image = attributes.remove("image").filter(|image| !image.is_empty());
            let container = container(id, name, &[], attributes, labels);
            Some(Happened::Described(Box::new(Seen { container, image, image_id: None, inspected: false })))
        }
        "die" => Some(Happened::Died { id }),
        "destroy" => Some(Happened::Destroyed { id }),
        _ => None,
    }
}

pub fn summary(summary: ContainerSummary, labels: &Labels) -> Option<Seen> {
    let id = summary.id.filter(|id| !id.is_empty())?;
    // Links add names of the form `/other/alias`.
    let name = summary.names.unwrap_or_default().into_iter().filter_map(plain_name).find(|name| !name.contains('/'));
    Some(Seen {
        container: container(id, name, &[], summary.labels.unwrap_or_default(), labels),
        image: summary.image.filter(|image| !image.is_empty()),
        image_id: summary.image_id.filter(|id| !id.is_empty()),
        inspected: false,
    })
}

/// The container, and whether it may have processes.
pub fn inspected(response: ContainerInspectResponse, labels: &Labels) -> Option<(Seen, bool)> {
    let status = response.state.and_then(|state| state.status);
    let over = matches!(
        status,
        Some(ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD | ContainerStateStatusEnum::REMOVING)
    );
    let id = response.id.filter(|id| !id.is_empty())?;
    let name = response.name.and_then(plain_name);
    let config = response.config.unwrap_or_default();
    let env = config.env.unwrap_or_default();
    let seen = Seen {
        container: container(id, name, &env, config.labels.unwrap_or_default(), labels),
        image: config.image.filter(|image| !image.is_empty()),
        image_id: response.image.filter(|id| !id.is_empty()),
        inspected: true,
    };
    Some((seen, !over))
}

fn container(
    id: String,
    name: Option<String>,
    env: &[String],
    labels: HashMap<String, String>,
    allowed: &Labels,
) -> Container {
    let (service, pod) = (Service::of(env, &labels), Pod::of(&labels));
    Container { id, runtime: "docker", name, image: None, labels: allowed.pick(labels), service, pod }
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
        let labels = Labels(allowed.iter().map(ToString::to_string).collect());
        event(serde_json::from_str(json).unwrap(), &labels)
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
    fn a_star_allows_any_rest_and_nothing_else_does() {
        let labels = Labels(vec!["app".into(), "com.x.*".into()]);
        for (key, allowed) in [("app", true), ("apple", false), ("com.x.y", true), ("com.x", false), ("", false)] {
            assert_eq!(labels.allow(key), allowed, "{key}");
        }
        assert!(Labels(vec!["*".into()]).allow("any"));
    }

    #[test]
    fn a_listed_name_is_the_container_s_own_and_not_a_link_s() {
        let json = r#"{"Id":"a","Names":["/web/db","/db"],"Image":"i","ImageID":"sha256:1"}"#;
        let seen = summary(serde_json::from_str(json).unwrap(), &Labels(vec![])).unwrap();
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
        let (seen, running) = inspected(serde_json::from_str(json).unwrap(), &Labels(vec![])).unwrap();
        assert!(running && seen.inspected && !format!("{seen:?}").contains("hunter2"));
        let service = seen.container.service;
        assert_eq!((service.name.as_deref(), service.namespace.as_deref()), (Some("checkout"), Some("site")));
        assert_eq!(service.attributes, [("team".to_owned(), "a".to_owned())]);
    }
}
