//! Pods and their containers, made over CRI as the kubelet makes them.

use std::collections::HashMap;
use std::path::Path;

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, ImageSpec, ImageStatusRequest, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StopPodSandboxRequest,
};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use crate::docker::Container;
use crate::watched::poll;
use crate::{PATIENCE, cgroup};

/// A client that any number of threads may use.
#[derive(Debug)]
pub struct Cri {
    channel: Channel,
    image: String,
    runtime: Runtime,
}

/// Runs until dropped; so do its containers.
#[derive(Debug)]
pub struct Pod<'a> {
    /// Of the sandbox, which is a container too.
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    config: PodSandboxConfig,
    cri: &'a Cri,
}

impl Cri {
    /// Returns when the runtime has this image, which all containers are made from.
    #[must_use]
    pub fn connect(socket: &Path, image: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display())).unwrap();
        let channel = runtime.block_on(endpoint.connect()).unwrap();
        let this = Self { channel, image: image.to_owned(), runtime };
        let known = poll(PATIENCE, || this.knows_the_image().then_some(()));
        assert!(known.is_some(), "the runtime does not know {image}");
        this
    }

    /// A pod on the host's network, below this cgroup: `/kubepods/burstable/podUID`.
    #[must_use]
    pub fn run_pod(
        &self,
        name: &str,
        namespace: &str,
        uid: &str,
        cgroup_parent: &str,
        labels: &[(&str, &str)],
    ) -> Pod<'_> {
        let kubelet = [
            ("io.kubernetes.pod.name", name),
            ("io.kubernetes.pod.namespace", namespace),
            ("io.kubernetes.pod.uid", uid),
        ];
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                namespace: namespace.to_owned(),
                uid: uid.to_owned(),
                attempt: 0,
            }),
            labels: map(&[&kubelet[..], labels].concat()),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: cgroup_parent.to_owned(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(on_the_hosts_network()),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let id = self.runtime.block_on(self.client().run_pod_sandbox(request)).unwrap().into_inner().pod_sandbox_id;
        let (name, namespace, uid) = (name.to_owned(), namespace.to_owned(), uid.to_owned());
        Pod { id, name, namespace, uid, config, cri: self }
    }

    fn client(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    fn knows_the_image(&self) -> bool {
        let request = ImageStatusRequest { image: Some(image(&self.image)), verbose: false };
        let status = self.runtime.block_on(ImageServiceClient::new(self.channel.clone()).image_status(request));
        // Until the service is up it answers with an error.
        status.is_ok_and(|status| status.into_inner().image.is_some())
    }
}

impl Pod<'_> {
    /// A container that runs when this returns.
    #[must_use]
    pub fn start(&self, name: &str, command: &[&str], labels: &[(&str, &str)]) -> Container {
        let kubelet = [
            ("io.kubernetes.container.name", name),
            ("io.kubernetes.pod.name", &self.name),
            ("io.kubernetes.pod.namespace", &self.namespace),
            ("io.kubernetes.pod.uid", &self.uid),
        ];
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(image(&self.cri.image)),
            command: command.iter().map(ToString::to_string).collect(),
            labels: map(&[&kubelet[..], labels].concat()),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(on_the_hosts_network()),
                    ..LinuxContainerSecurityContext::default()
                }),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let id = self.cri.runtime.block_on(async {
            let mut client = self.cri.client();
            let container_id = client.create_container(request).await.unwrap().into_inner().container_id;
            client.start_container(StartContainerRequest { container_id: container_id.clone() }).await.unwrap();
            container_id
        });
        Container { id, name: name.to_owned(), stdout: String::new() }
    }

    /// A container that has run to its end, well, and is gone.
    #[must_use]
    pub fn run(&self, name: &str, command: &[&str]) -> Container {
        let container_id = self.start(name, command, &[]).id;
        let ended = |status: ContainerStatus| {
            (status.state() == ContainerState::ContainerExited).then_some((status.exit_code, status.reason))
        };
        let end = poll(PATIENCE, || ended(self.status(&container_id)));
        assert_eq!(end, Some((0, "Completed".to_owned())), "{name} in {}", self.name);
        let request = RemoveContainerRequest { container_id: container_id.clone() };
        self.cri.runtime.block_on(self.cri.client().remove_container(request.clone())).unwrap();
        Container { id: request.container_id, name: name.to_owned(), stdout: String::new() }
    }

    /// Runs a command in a container, well, to its end.
    pub fn exec(&self, container: &Container, command: &[&str]) {
        let cmd = command.iter().map(ToString::to_string).collect();
        let request = ExecSyncRequest { container_id: container.id.clone(), cmd, timeout: 10 };
        let answer = self.cri.runtime.block_on(self.cri.client().exec_sync(request)).unwrap().into_inner();
        assert_eq!(answer.exit_code, 0, "{command:?}: {}", String::from_utf8_lossy(&answer.stderr));
    }

    fn status(&self, container_id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: container_id.to_owned(), verbose: false };
        let answer = self.cri.runtime.block_on(self.cri.client().container_status(request));
        answer.unwrap().into_inner().status.unwrap()
    }
}

impl Drop for Pod<'_> {
    /// The kubelet removes a pod's cgroup itself.
    fn drop(&mut self) {
        let pod_sandbox_id = self.id.clone();
        let done = self.cri.runtime.block_on(async {
            let mut client = self.cri.client();
            client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await?;
            client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await
        });
        if let Err(error) = done {
            eprintln!("pod {} stays behind: {error}", self.name);
        }
        let linux = self.config.linux.take().unwrap_or_default();
        if linux.cgroup_parent.ends_with(&self.uid) {
            cgroup::remove(&linux.cgroup_parent);
        }
    }
}

/// No CNI is needed there.
fn on_the_hosts_network() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ..NamespaceOption::default()
    }
}

fn image(name: &str) -> ImageSpec {
    ImageSpec { image: name.to_owned(), ..ImageSpec::default() }
}

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
