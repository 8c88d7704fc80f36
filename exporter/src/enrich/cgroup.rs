//! A cgroup path goes in; the container or the systemd unit that it belongs to comes out.

use super::container::{is_full_id, is_lower_hex};
use crate::event::CgroupPath;

const ID_LEN: usize = 64;
/// Longest name that is taken for an id where ids are names, in bytes.
const NAME_MAX: usize = 128;

/// A container, as far as a path tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContainerRef<'a> {
    /// 64 lower-case hexadecimal digits; a name for `lxc` and `systemd-nspawn`, other digits for a task on Fargate and for
    /// `BuildKit`.
    pub id: &'a str,
    /// `docker`, `containerd`, `cri-o`, `podman`, `lxc` or `systemd-nspawn`.
    pub runtime: &'static str,
    /// Below a user's own systemd: that user's id. Whoever is that user makes and names the cgroups there, after any
    /// container they like.
    pub user: Option<u32>,
    /// The uid of its Kubernetes pod, as the cgroup has it: some have `_` for `-`.
    pub pod_uid: Option<&'a str>,
    /// The container's own cgroup.
    pub root: CgroupPath<'a>,
    /// It was found in the v1 hierarchy.
    pub in_v1: bool,
    /// What looks like a container's id below its own cgroup: the container's to choose.
    pub nested: Option<&'a str>,
}

/// A systemd unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitRef<'a> {
    /// Of the system's manager: `ssh.service`, `session-3.scope`, `user@1000.service`.
    pub unit: &'a str,
    /// Of a user's own manager.
    pub user_unit: Option<&'a str>,
}

/// The container of a process, from its cgroup paths; `None`: it runs on the host itself, or in a container that its path
/// does not tell of.
#[must_use]
pub fn resolve<'a>(v2: CgroupPath<'a>, v1: CgroupPath<'a>) -> Option<ContainerRef<'a>> {
    // On hybrid hosts v2 has every process too, but may know no more than the root of it.
    outermost(v2).or_else(|| outermost(v1).map(|found| ContainerRef { in_v1: true, ..found }))
}

/// The systemd unit of a process on the host.
#[must_use]
pub fn unit<'a>(v2: CgroupPath<'a>, v1: CgroupPath<'a>) -> Option<UnitRef<'a>> {
    unit_of(v2).or_else(|| unit_of(v1))
}

/// Whether a cgroup may be that of a container whose path does not tell: neither systemd's nor near the root.
#[must_use]
pub fn is_unclaimed(path: CgroupPath<'_>) -> bool {
    !is_systemd_s(path) && path.root_to_leaf().nth(1).is_some()
}

/// Whether systemd manages a cgroup, or one above it.
#[must_use]
pub fn is_systemd_s(path: CgroupPath<'_>) -> bool {
    path.root_to_leaf().next().is_some_and(|first| first.ends_with(b".slice") || is_unit(first))
}

/// The first match from the root wins: what lies below a container's own cgroup is named by the container, which may
/// name it after another one. So a `kind` or dind node owns all that runs in it; to tell its inner containers apart
/// takes the inner runtime's word, as no path can vouch for them.
fn outermost(path: CgroupPath<'_>) -> Option<ContainerRef<'_>> {
    let mut place = Place::default();
    let mut found: Option<ContainerRef<'_>> = None;
    for (depth, root) in path.from_root().enumerate() {
        let component = root.leaf();
        match &mut found {
            None => match place.container(component, depth) {
                Some((id, runtime)) => {
                    let (user, pod_uid) = (place.user, pod_uid(component).or(place.pod_uid));
                    found = Some(ContainerRef { id, runtime, user, pod_uid, root, in_v1: false, nested: None });
                }
                None => place.enter(component, depth)?,
            },
            Some(found) => {
                if let Some((id, _)) = marked(component) {
                    found.nested = Some(id);
                }
            }
        }
    }
    found
}

/// What the cgroups above say of one.
#[derive(Clone, Copy, Default)]
struct Place<'a> {
    /// Who makes cgroups named by nothing but the id.
    family: Family,
    /// A slice of all users, of one user, or what that user's manager makes.
    session: Session,
    user: Option<u32>,
    pod_uid: Option<&'a str>,
    /// Of the top-level cgroup.
    top: Top,
}

/// Who makes cgroups named by nothing but the id, judged by the cgroups above.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Family {
    /// `/docker`, `/ecs`, `/actions_job`, and wherever `--cgroup-parent` points.
    #[default]
    Docker,
    /// Kubernetes pods with the cgroupfs driver, and nerdctl's namespaces. (cri-dockerd looks the same, and is known
    /// once Docker answers for the id.)
    Containerd,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Session {
    #[default]
    None,
    /// `user.slice`
    Users,
    /// `user-UID.slice` in it.
    Of(u32),
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Top {
    #[default]
    Other,
    Docker,
    Ecs,
    Lxc,
    Machine,
}

impl<'a> Place<'a> {
    /// The id and runtime of the container whose own cgroup this is.
    fn container(&self, component: &'a [u8], depth: usize) -> Option<(&'a str, &'static str)> {
        if self.user.is_some() {
            // Only what a rootless runtime marks as its own.
            return marked(component).filter(|(_, runtime)| !runtime.is_empty());
        }
        if let Some((id, runtime)) = marked(component) {
            return Some((id, if runtime.is_empty() { self.family.runtime() } else { runtime }));
        }
        let named = |name: &'a [u8], runtime| Some((name_of(name)?, runtime));
        match (self.top, depth) {
            (_, 0) => named(component.strip_prefix(b"lxc.payload.")?, "lxc"),
            (Top::Lxc, 1) => named(component, "lxc"),
            (Top::Machine, 1) => {
                let scope = component.strip_prefix(b"machine-").and_then(|rest| rest.strip_suffix(b".scope"));
                let service =
                    component.strip_prefix(b"systemd-nspawn@").and_then(|rest| rest.strip_suffix(b".service"));
                // libvirt registers its machines too.
                let name = scope.or(service).filter(|name| !name.starts_with(b"qemu") && !name.starts_with(b"lxc"))?;
                named(name, "systemd-nspawn")
            }
            (Top::Docker, 2..) if is_build(component) => named(component, "docker"),
            (Top::Ecs, 2..) if is_task(component) => named(component, "containerd"),
            _ => None,
        }
    }

    /// What this cgroup says of those below; `None`: nothing below can be a container of the host's.
    fn enter(&mut self, component: &'a [u8], depth: usize) -> Option<()> {
        match (self.session, component) {
            (Session::None, b"user.slice") if depth == 0 => self.session = Session::Users,
            (Session::Users, name) if depth == 1 => {
                self.session = number(name, b"user-", b".slice").map_or(Session::None, Session::Of);
            }
            (Session::Of(user), name) if depth == 2 && number(name, b"user@", b".service") == Some(user) => {
                self.user = Some(user);
            }
            // A manager that is not where systemd puts it.
            (_, name) if self.user.is_none() && name.starts_with(b"user@") => return None,
            _ => {}
        }
        if depth == 0 {
            self.top = match component {
                b"docker" => Top::Docker,
                b"ecs" => Top::Ecs,
                b"lxc" | b"lxc.payload" => Top::Lxc,
                b"machine.slice" => Top::Machine,
                _ => Top::Other,
            };
        }
        let pods = component.strip_prefix(b"kubelet-").unwrap_or(component).starts_with(b"kubepods");
        let namespace = depth == 0 && matches!(component, b"default" | b"k8s.io");
        if pods || namespace {
            self.family = Family::Containerd;
        }
        self.pod_uid = pod_uid(component).or(self.pod_uid);
        Some(())
    }
}

impl Family {
    fn runtime(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
        }
    }
}

/// The id that a cgroup's name ends with, and the runtime that it is marked with; empty if it is nothing but an id.
fn marked(component: &[u8]) -> Option<(&str, &'static str)> {
    let stem = component.strip_suffix(b".scope").unwrap_or(component);
    let (maker, id) = stem.split_at_checked(stem.len().checked_sub(ID_LEN)?)?;
    if !is_full_id(id) {
        return None;
    }
    let runtime = match maker {
        b"" if stem.len() == component.len() => "",
        _ => maker_runtime(maker)?,
    };
    Some((str::from_utf8(id).ok()?, runtime))
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

/// A name that serves as an id.
fn name_of(name: &[u8]) -> Option<&str> {
    let printable = |byte: &u8| byte.is_ascii_graphic();
    (!name.is_empty() && name.len() <= NAME_MAX && name.iter().all(printable)).then(|| str::from_utf8(name).ok())?
}

/// Made by `BuildKit`: 25 digits and letters.
fn is_build(component: &[u8]) -> bool {
    component.len() == 25 && component.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'z'))
}

/// A container of a task on Fargate: the task's 32 digits, and a number.
fn is_task(component: &[u8]) -> bool {
    component.split_at_checked(32).is_some_and(|(task, rest)| {
        let number = rest.strip_prefix(b"-").unwrap_or_default();
        is_lower_hex(task) && !number.is_empty() && number.iter().all(u8::is_ascii_digit)
    })
}

/// `pod<uid>`, or `kubepods-burstable-pod<uid>.slice`, which may be followed by more behind a colon.
fn pod_uid(component: &[u8]) -> Option<&str> {
    let name = component.split(|byte| *byte == b':').next()?;
    let name = name.strip_suffix(b".slice").unwrap_or(name);
    let at = name.windows(3).rposition(|part| part == b"pod")?;
    if at != 0 && name.get(at - 1) != Some(&b'-') {
        return None;
    }
    let uid = name.get(at + 3..)?;
    // A uuid, or the hash of a static pod's configuration.
    let digits = uid.iter().filter(|byte| !matches!(byte, b'-' | b'_'));
    let looks =
        matches!(uid.len(), 32 | 36) && digits.clone().count() == 32 && digits.clone().all(u8::is_ascii_hexdigit);
    looks.then(|| str::from_utf8(uid).ok())?
}

fn number(name: &[u8], prefix: &[u8], suffix: &[u8]) -> Option<u32> {
    str::from_utf8(name.strip_prefix(prefix)?.strip_suffix(suffix)?).ok()?.parse().ok()
}

/// The first unit below slices, and below a user's manager that manager's first unit below slices.
fn unit_of(path: CgroupPath<'_>) -> Option<UnitRef<'_>> {
    let mut components = path.root_to_leaf().skip_while(|component| component.ends_with(b".slice"));
    let unit = components.next().filter(|component| is_unit(component)).and_then(name_of)?;
    let user_unit = || {
        let mut components = components.skip_while(|component| component.ends_with(b".slice"));
        components.next().filter(|component| is_unit(component)).and_then(name_of)
    };
    Some(UnitRef { unit, user_unit: if unit.starts_with("user@") { user_unit() } else { None } })
}

fn is_unit(component: &[u8]) -> bool {
    [&b".service"[..], b".scope", b".socket", b".mount", b".swap"].iter().any(|suffix| component.ends_with(suffix))
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
    fn containers_without_a_long_id_are_known_by_the_place_that_only_root_can_name() {
        let names =
            |path: &str, id: &str, runtime| assert_eq!(resolved(path), Some((id.to_owned(), runtime)), "{path}");
        names("/lxc.payload.web", "web", "lxc");
        names("/lxc.payload.web/system.slice/a.service", "web", "lxc");
        names("/lxc/web/init.scope", "web", "lxc");
        names("/machine.slice/machine-web.scope/payload", "web", "systemd-nspawn");
        names("/machine.slice/systemd-nspawn@web.service/payload", "web", "systemd-nspawn");
        names("/docker/buildkit/k3j4h5k6j7h8k9j0h1k2j3h4k", "k3j4h5k6j7h8k9j0h1k2j3h4k", "docker");
        let task = "a2b3c4d5e6f708192a3b4c5d6e7f8091-1234567890";
        names(&format!("/ecs/a2b3c4d5e6f708192a3b4c5d6e7f8091/{task}"), task, "containerd");
    }

    /// User, pod, nested id, and own cgroup.
    type Whole = (Option<u32>, Option<String>, Option<String>, Vec<u8>);

    fn whole(path: &str) -> Option<Whole> {
        let bytes = walked(&path.replace("ID", ID).replace("OTHER", OTHER));
        let found = resolve(CgroupPath(&bytes), CgroupPath(&[]))?;
        let own = |text: Option<&str>| text.map(ToOwned::to_owned);
        Some((found.user, own(found.pod_uid), own(found.nested), found.root.0.to_vec()))
    }

    #[test]
    fn a_rootless_container_is_a_user_s() {
        let (user, ..) =
            whole("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container").unwrap();
        assert_eq!(user, Some(1000));
        let (user, ..) = whole("/user.slice/user-7.slice/user@7.service/app.slice/docker-ID.scope").unwrap();
        assert_eq!(user, Some(7));
        assert_eq!(whole("/machine.slice/libpod-ID.scope").unwrap().0, None);
    }

    #[test]
    fn a_pod_is_known_by_its_cgroup() {
        let uid = |path: &str| whole(&path.replace("UID", UID)).unwrap().1;
        assert_eq!(uid("/kubepods/besteffort/podUID/ID").as_deref(), Some(UID));
        let slice = UID.replace('-', "_");
        assert_eq!(
            uid(&format!("/kubepods.slice/kubepods-pod{slice}.slice/cri-containerd-ID.scope")).as_deref(),
            Some(slice.as_str())
        );
        assert_eq!(
            uid(&format!("/system.slice/containerd.service/kubepods-besteffort-pod{slice}.slice:cri-containerd:ID"))
                .as_deref(),
            Some(slice.as_str())
        );
        assert_eq!(uid("/kubepods/tripod/ID"), None);
        assert_eq!(uid("/docker/ID"), None);
    }

    #[test]
    fn what_a_container_makes_below_is_told_apart() {
        let (_, _, nested, root) = whole("/docker/ID/kubelet/kubepods/burstable/podx/OTHER").unwrap();
        assert_eq!(nested.as_deref(), Some(OTHER));
        assert_eq!(root, walked(&format!("/docker/{ID}")));
        assert_eq!(whole("/docker/ID/init").unwrap().2, None);
    }

    #[test]
    fn host_processes_have_their_unit() {
        let unit_at = |path: &str| {
            let bytes = walked(path);
            unit(CgroupPath(&bytes), CgroupPath(&[]))
                .map(|found| (found.unit.to_owned(), found.user_unit.map(ToOwned::to_owned)))
        };
        let is = |path: &str, unit: &str, user: Option<&str>| {
            assert_eq!(unit_at(path), Some((unit.to_owned(), user.map(ToOwned::to_owned))), "{path}");
        };
        is("/init.scope", "init.scope", None);
        is("/system.slice/ssh.service", "ssh.service", None);
        is("/system.slice/system-getty.slice/getty@tty1.service/x.service", "getty@tty1.service", None);
        is("/user.slice/user-1000.slice/session-3.scope", "session-3.scope", None);
        is(
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.slice/a.service/b.scope",
            "user@1000.service",
            Some("a.service"),
        );
        is("/user.slice/user-1000.slice/user@1000.service/init.scope", "user@1000.service", Some("init.scope"));
        for path in ["/", "/system.slice", "/batch/a.service", "/docker"] {
            assert_eq!(unit_at(path), None, "{path}");
        }
    }

    #[test]
    fn only_what_is_not_systemd_s_may_be_an_unknown_container_s() {
        for (path, unclaimed) in [
            ("/default/web", true),
            ("/default/web/below", true),
            ("/default", false),
            ("/", false),
            ("/system.slice/a.service", false),
            ("/init.scope/x", false),
        ] {
            assert_eq!(is_unclaimed(CgroupPath(&walked(path))), unclaimed, "{path}");
        }
    }

    #[test]
    fn host_paths_are_no_containers() {
        is_host("/");
        is_host("/system.slice/docker.service");
        is_host("/user.slice/user-1000.slice/session-3.scope");
        is_host("/user.slice/user-1000.slice/user@1000.service/app.slice/vte-spawn-UID.scope");
        is_host("/user.slice/user-1000.slice/user@1001.service/user.slice/libpod-ID.scope/container");
        is_host("/system.slice/user@1000.service/user.slice/libpod-ID.scope/container");
        is_host("/user.slice/user-1000.slice/user@1000.service/user.slice/ID");
        is_host("/machine.slice/crio-conmon-ID.scope");
        is_host("/machine.slice/libpod-conmon-ID.scope");
        is_host("/lxc.monitor.web");
        is_host("/system.slice/lxc.payload.web");
        is_host("/machine.slice/machine-qemu\\x2d1\\x2dweb.scope");
        is_host("/buildkit/k3j4h5k6j7h8k9j0h1k2j3h4k");
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
                proptest::prop_assert!(is_full_id(found.id.as_bytes()));
                proptest::prop_assert!(bytes.ends_with(found.root.0));
            }
        }
    }
}
