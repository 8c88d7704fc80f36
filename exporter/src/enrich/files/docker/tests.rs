use super::*;
use crate::enrich::container::{Container, Labels};

fn describe(config: &str) -> io::Result<Found> {
    let (root, id) = (tempfile::tempdir().unwrap(), "ab".repeat(32));
    let folder = root.path().join("containers").join(&id);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.v2.json"), config).unwrap();
    let layout = Docker::new(root.path().to_owned());
    let listed = layout.list(&layout.base()?.folder("containers")?)?;
    layout.describe("containers", &listed[0])
}

#[test]
fn a_container_is_as_its_configuration_says() {
    let written = r#"{"Name":"/web","Image":"sha256:12","State":{"Running":false,"Pid":0},"Config":{"Image":"r:5000/i:t",
        "Env":["OTEL_SERVICE_NAME=shop","PASSWORD=hunter2"],"Labels":{"team":"core"}}}"#;
    let found = describe(written).unwrap();
    let labels = Labels { sent: vec!["team".to_owned()], matched: Vec::new() };
    let container = Container::described("docker", found.described, &labels);
    assert_eq!((container.name.as_deref(), container.service.name.as_deref()), (Some("web"), Some("shop")));
    assert_eq!(container.labels, [("team".to_owned(), "core".to_owned())]);
    let image = container.image.unwrap();
    assert_eq!((image.name.as_str(), image.id.as_deref()), ("r:5000/i", Some("sha256:12")));
}

#[test]
fn a_pid_of_before_a_crash_is_not_the_container_s() {
    let found =
        describe(&format!(r#"{{"Name":"/a","State":{{"Running":true,"Pid":{}}}}}"#, std::process::id())).unwrap();
    assert_eq!((found.process, found.cgroup), (None, None));
}

#[test]
fn what_is_null_is_missing() {
    let found = describe(r#"{"Name":"/a","Config":{"Env":null,"Labels":null}}"#).unwrap();
    assert_eq!(found.described.name.as_deref(), Some("a"));
    assert!(describe("null").is_err() && describe("").is_err() && describe(r#"{"Name":7}"#).is_err());
}
