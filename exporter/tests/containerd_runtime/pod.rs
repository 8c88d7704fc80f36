//! A pod in a real containerd, through the CRI.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use prost::Message;
use tokio::time::sleep;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use crate::daemon::{Daemon, IMAGE, command};
use crate::{Found, PATIENCE, cgroups};

/// A pod as the kubelet makes it, and one container in it.
pub struct Pod {
    pub sandbox: String,
    pub container: String,
}

impl Pod {
    pub async fn run(daemon: &Daemon, channel: &Channel) -> Self {
        let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let of_pod = [
            ("io.kubernetes.pod.name", "shop-0"),
            ("io.kubernetes.pod.namespace", "prod"),
            ("io.kubernetes.pod.uid", "17b1"),
        ];
        let host = SecurityContext { namespaces: Some(Namespaces { network: 2 }) };
        let config = SandboxConfig {
            metadata: Some(Metadata { name: "shop-0".into(), uid: "17b1".into(), namespace: "prod".into() }),
            log_directory: daemon.directory.path().to_str().unwrap().to_owned(),
            labels: pairs(&[&of_pod[..], &[("app.kubernetes.io/name", "shop")]].concat()),
            annotations: pairs(&[("resource.opentelemetry.io/service.namespace", "web"), ("secret", "x")]),
            linux: Some(Linux { cgroup_parent: format!("/kubepods/pod{}", std::process::id()), security: Some(host) }),
        };
        let request = RunPodSandbox { config: Some(config.clone()) };
        let sandbox = ask::<_, Id>(channel, "/runtime.v1.RuntimeService/RunPodSandbox", request).await.id;
        let request = CreateContainer {
            sandbox: sandbox.clone(),
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata { name: "web".into() }),
                image: Some(Image { image: IMAGE.into() }),
                command: ["sleep", "600"].map(Into::into).to_vec(),
                envs: vec![Env { key: "OTEL_RESOURCE_ATTRIBUTES".into(), value: "team=core".into() }],
                labels: pairs(&[&of_pod[..], &[("io.kubernetes.container.name", "web")]].concat()),
                log_path: "web.log".into(),
            }),
            sandbox_config: Some(config),
        };
        let container = ask::<_, Id>(channel, "/runtime.v1.RuntimeService/CreateContainer", request).await.id;
        let request = Id { id: container.clone() };
        ask::<_, Nothing>(channel, "/runtime.v1.RuntimeService/StartContainer", request).await;
        Self { sandbox, container }
    }

    pub async fn stop(&self, channel: &Channel) {
        for path in ["/runtime.v1.RuntimeService/StopPodSandbox", "/runtime.v1.RuntimeService/RemovePodSandbox"] {
            ask::<_, Nothing>(channel, path, Id { id: self.sandbox.clone() }).await;
        }
        // What the kubelet would do.
        let script = "find /sys/fs/cgroup -depth -type d -path \"*/kubepods/pod$1\" -exec rmdir {} \\;";
        command("sh", &["-c", script, "sh", &std::process::id().to_string()]);
    }

    /// What a source must say of both, whichever it is.
    #[track_caller]
    pub fn check(&self, (_, container, _, place): &Found, digest: &str) {
        let pod = &container.pod;
        let pod = [&pod.name, &pod.namespace, &pod.uid, &pod.container].map(|part| part.as_deref());
        let web = (container.id == self.container).then_some("web");
        assert_eq!(pod, [Some("shop-0"), Some("prod"), Some("17b1"), web]);
        assert_eq!((container.runtime, container.namespace.as_deref()), ("containerd", Some("k8s.io")));
        assert_eq!(container.name.as_deref(), web);
        let service = &container.service;
        assert_eq!((service.name.as_deref(), service.namespace.as_deref()), (Some("shop"), Some("web")));
        let cgroup = format!("/kubepods/pod{}/{}", std::process::id(), container.id);
        assert_eq!(place.cgroup.as_deref(), Some(cgroup.as_str()));
        assert!(cgroups(place.pid.unwrap()).contains(&format!(":{cgroup}\n")));
        if web.is_some() {
            assert_eq!(service.attributes, [("team".to_owned(), "core".to_owned())]);
            let image = container.image.clone().unwrap();
            assert_eq!((image.name.as_str(), image.tags), ("docker.io/library/nstest", vec!["one".to_owned()]));
            // containerd's CRI knows no digest of an image that nobody pulled.
            assert!(image.id.is_some_and(|id| id.starts_with("sha256:") && id != digest));
            assert!(image.repo_digests.iter().all(|found| *found == format!("docker.io/library/nstest@{digest}")));
        }
    }
}

async fn ask<Q: Message + Clone + 'static, A: Message + Default + 'static>(
    channel: &Channel,
    path: &'static str,
    question: Q,
) -> A {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut grpc = Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let request = tonic::Request::new(question.clone());
        let path = http::uri::PathAndQuery::from_static(path);
        match grpc.unary(request, path, ProstCodec::<Q, A>::default()).await {
            Ok(answer) => return answer.into_inner(),
            // The plugin takes its time to start, and to hear of a new image.
            Err(status) => assert!(Instant::now() < deadline, "{status}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The first field of many messages.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(map = "string, string", tag = "6")]
    labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "7")]
    annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<Linux>,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct Linux {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security: Option<SecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
struct SecurityContext {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
}

/// `2`: the node's.
#[derive(Clone, PartialEq, Message)]
struct Namespaces {
    #[prost(int32, tag = "1")]
    network: i32,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<Image>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    envs: Vec<Env>,
    #[prost(map = "string, string", tag = "9")]
    labels: HashMap<String, String>,
    #[prost(string, tag = "11")]
    log_path: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct Env {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}
