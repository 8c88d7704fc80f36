//! A cgroup path goes in, the id of the container it belongs to comes out.

use super::container::is_lower_hex;
use crate::event::CgroupPath;

const ID_LEN: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContainerRef<'a> {
    /// 64 lower-case hexadecimal digits.
    pub id: &'a str,
    /// `docker`, `containerd`, `cri-o` or `podman`, as far as the path tells.
    pub runtime: &'static str,
}

/// The container of a process, from its cgroup paths; `None`: it runs on the host itself.
#[must_use]
pub fn resolve<'a>(v2: CgroupPath<'a>, v1: CgroupPath<'a>) -> Option<ContainerRef<'a>> {
    // On hybrid hosts v2 has every process too, but may know no more than the root of it.
    outermost(v2).or_else(|| outermost(v1))
}

/// The first match from the root wins: what lies below a container's own cgroup is named by the container, which may
/// name it after another one. So a `kind` or dind node owns all that runs in it; to tell its inner containers apart
/// takes the inner runtime's word, as no path can vouch for them.
fn outermost(path: CgroupPath<'_>) -> Option<ContainerRef<'_>> {
    let mut family = Family::Docker;
    for (depth, component) in path.root_to_leaf().enumerate() {
        // A user's own systemd: whoever is that user makes and names the cgroups below, after any container they like. Only
        // that user's own runtime could vouch for an id there.
        if component.starts_with(b"user@") {
            return None;
        }
        if let Some(found) = container(component, family) {
            return Some(found);
        }
        family = family.below(component, depth);
    }
    None
}

/// Who makes cgroups named by nothing but the id, judged by the cgroups above.
#[derive(Clone, Copy)]
enum Family {
    /// `/docker`, `/ecs`, `/actions_job`, and wherever `--cgroup-parent` points.
    Docker,
    /// Kubernetes pods with the cgroupfs driver, and nerdctl's namespaces. (cri-dockerd looks the same, and is known
    /// once Docker answers for the id.)
    Containerd,
}

impl Family {
    fn below(self, component: &[u8], depth: usize) -> Self {
        let pods = component.strip_prefix(b"kubelet-").unwrap_or(component).starts_with(b"kubepods");
        let namespace = depth == 0 && matches!(component, b"default" | b"k8s.io");
        if pods || namespace { Self::Containerd } else { self }
    }

    fn runtime(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
        }
    }
}

fn container(component: &[u8], family: Family) -> Option<ContainerRef<'_>> {
    let stem = component.strip_suffix(b".scope").unwrap_or(component);
    let (maker, id) = stem.split_at_checked(stem.len().checked_sub(ID_LEN)?)?;
    if !is_lower_hex(id) {
        return None;
    }
    let runtime = match maker {
        b"" if stem.len() == component.len() => family.runtime(),
        _ => maker_runtime(maker)?,
    };
    Some(ContainerRef { id: str::from_utf8(id).ok()?, runtime })
}

/// Runtime by what stands before the id: `docker-<id>.scope`, or `<slice>:cri-containerd:<id>` where runc was given a
/// systemd path but the cgroupfs driver. Monitors (`crio-conmon-`, `libpod-conmon-`) are processes of the host.
fn maker_runtime(maker: &[u8]) -> Option<&'static str> {
    let name = match maker.split_last()? {
        (b'-', name) => name,
        (b':', slice_and_name) => slice_and_name.rsplit(|byte| *byte == b':').next()?,
        _ => return None,
    };
    match name {
        b"docker" => Some("docker"),
        b"cri-containerd" | b"nerdctl" => Some("containerd"),
        b"crio" => Some("cri-o"),
        b"libpod" | b"libpod-payload" => Some("podman"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "d0203f329e3cdc44ef1c89ee8b4f10dd923b2598aa68fb61fda555c1d053aa19";
    const OTHER: &str = "0000000000000000000000000000000000000000000000000000000000000bad";
    const UID: &str = "8b3e4f0a-5c1d-4e6f-9a2b-7c8d9e0f1a2b";

    /// As the kernel side sends it: leaf first, each component ended by NUL.
    fn walked(path: &str) -> Vec<u8> {
        path.split('/').rev().filter(|c| !c.is_empty()).flat_map(|c| c.bytes().chain([0])).collect()
    }

    fn resolved(path: &str) -> Option<(String, &'static str)> {
        let path = path.replace("ID", ID).replace("OTHER", OTHER).replace("UID", UID);
        let bytes = walked(&path);
        resolve(CgroupPath(&bytes), CgroupPath(&[])).map(|found| (found.id.to_owned(), found.runtime))
    }

    #[track_caller]
    fn is(path: &str, runtime: &'static str) {
        assert_eq!(resolved(path), Some((ID.to_owned(), runtime)), "{path}");
    }

    #[track_caller]
    fn is_host(path: &str) {
        assert_eq!(resolved(path), None, "{path}");
    }

    #[test]
    fn docker_paths_name_their_container() {
        is("/docker/ID", "docker");
        is("/docker/ID/init", "docker");
        is("/system.slice/docker-ID.scope", "docker");
        is("/system.slice/docker-ID.scope/init.scope", "docker");
        is("/system.slice/docker-ID.scope/system.slice/nginx.service", "docker");
        is("/system.slice:docker:ID", "docker");
        is("/actions_job/ID", "docker");
        is("/ecs/a2b3c4d5e6f708192a3b4c5d6e7f8091/ID", "docker");
        is("/ecs/my-cluster/a2b3c4d5e6f708192a3b4c5d6e7f8091/ID", "docker");
        is("/ecstasks.slice/ecstasks-a2b3c4d5e6f708192a3b4c5d6e7f8091.slice/docker-ID.scope", "docker");
    }

    #[test]
    fn a_custom_cgroup_parent_hides_no_container() {
        is("/batch/jobs/ID", "docker");
        is("/ID", "docker");
    }

    #[test]
    fn kubernetes_paths_name_their_container() {
        let pod = UID.replace('-', "_");
        let slice = format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{pod}.slice");
        is(&format!("{slice}/cri-containerd-ID.scope"), "containerd");
        is(&format!("{slice}/crio-ID.scope"), "cri-o");
        is(&format!("{slice}/crio-ID.scope/container"), "cri-o");
        is(&format!("{slice}/docker-ID.scope"), "docker");
        is(
            &format!("/system.slice/containerd.service/kubepods-besteffort-pod{pod}.slice:cri-containerd:ID"),
            "containerd",
        );
        is("/kubepods/besteffort/podUID/ID", "containerd");
        is("/kubepods/burstable/podUID/ID", "containerd");
        is("/kubepods/podUID/ID", "containerd");
        is("/kubepods/podUID/crio-ID", "cri-o");
        is("/kubelet/kubepods/podUID/ID", "containerd");
        is(
            &format!("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{pod}.slice/cri-containerd-ID.scope"),
            "containerd",
        );
    }

    #[test]
    fn podman_and_nerdctl_paths_name_their_container() {
        is("/machine.slice/libpod-ID.scope", "podman");
        is("/machine.slice/libpod-ID.scope/container", "podman");
        is("/libpod_parent/libpod-ID", "podman");
        is("/system.slice/web.service/libpod-payload-ID", "podman");
        is("/system.slice/nerdctl-ID.scope", "containerd");
        is("/default/ID", "containerd");
    }

    #[test]
    fn host_paths_are_no_containers() {
        is_host("/");
        is_host("/system.slice/docker.service");
        is_host("/user.slice/user-1000.slice/session-3.scope");
        is_host("/user.slice/user-1000.slice/user@1000.service/app.slice/vte-spawn-UID.scope");
        is_host("/user.slice/user-1000.slice/user@1000.service/app.slice/docker-ID.scope");
        is_host("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container");
        is_host("/machine.slice/crio-conmon-ID.scope");
        is_host("/machine.slice/libpod-conmon-ID.scope");
        is_host("/docker/buildkit/k3j4h5k6j7h8k9j0h1k2j3h4k");
        is_host("/lxc.payload.web");
        is_host("/machine.slice/machine-web.scope");
        is_host("/kubepods/besteffort/podUID");
        is_host("/system.slice/var-lib-docker-containers-ID-mounts-shm.mount");
        is_host("/system.slice/foo-ID.scope");
        is_host("/system.slice/fooID");
        is_host("/system.slice/ID.scope");
    }

    #[test]
    fn only_64_lower_case_digits_are_an_id() {
        for id in [&ID[1..], &format!("{ID}0"), &ID.to_uppercase(), &ID.replace('d', "g")] {
            is_host(&format!("/docker/{id}"));
            is_host(&format!("/system.slice/docker-{id}.scope"));
            is_host(&format!("/kubepods/podUID/{id}"));
        }
    }

    #[test]
    fn a_container_cannot_pass_for_another_below_its_own_cgroup() {
        is("/docker/ID/docker/OTHER", "docker");
        is("/docker/ID/OTHER", "docker");
        is("/system.slice/docker-ID.scope/system.slice/docker-OTHER.scope", "docker");
        is("/system.slice/docker-ID.scope/kubelet/kubepods/burstable/podUID/OTHER", "docker");
        is("/machine.slice/libpod-ID.scope/container/libpod-OTHER.scope", "podman");
    }

    #[test]
    fn v2_is_asked_first_and_v1_where_it_knows_nothing() {
        let (mine, other, host) =
            (walked(&format!("/docker/{ID}")), walked(&format!("/docker/{OTHER}")), walked("/system.slice/a.service"));
        let id = |v2, v1| resolve(CgroupPath(v2), CgroupPath(v1)).map(|found| found.id);
        assert_eq!(id(&mine, &other), Some(ID));
        assert_eq!(id(&host, &mine), Some(ID));
        assert_eq!(id(&[], &mine), Some(ID));
        assert_eq!(id(&host, &host), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_taken(v2: Vec<u8>, v1: Vec<u8>) {
            std::hint::black_box(resolve(CgroupPath(&v2), CgroupPath(&v1)));
        }

        #[test]
        fn what_is_found_is_always_an_id(path in "([a-f0-9]{63,65}|docker-|:|/|\\.scope|crio-|kubepods|\0){0,12}") {
            let bytes = path.replace('/', "\0").into_bytes();
            if let Some(found) = resolve(CgroupPath(&bytes), CgroupPath(&bytes)) {
                proptest::prop_assert!(found.id.len() == ID_LEN && is_lower_hex(found.id.as_bytes()));
            }
        }
    }
}
