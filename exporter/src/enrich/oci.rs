//! An OCI runtime specification comes in as JSON, what tells of its container comes out.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Longest specification that is read, in bytes.
const SPEC_MAX: usize = 4 << 20;
/// Longest path and longest name of a cgroup, in bytes (`PATH_MAX`, `NAME_MAX`).
const PATH_MAX: usize = 4096;
const NAME_MAX: usize = 255;

/// `config.json` of a bundle, as far as it is wanted. Everything may be missing.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Spec {
    #[serde(default)]
    process: Option<Process>,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
struct Process {
    #[serde(default)]
    env: Option<Vec<String>>,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    #[serde(default)]
    cgroups_path: Option<String>,
}

/// A specification, or a runtime's record with one inside; nothing of what is none.
pub fn parse<T: Default + DeserializeOwned>(json: &[u8]) -> T {
    let fits = Some(json).filter(|json| json.len() <= SPEC_MAX);
    fits.and_then(|json| serde_json::from_slice(json).ok()).unwrap_or_default()
}

impl Spec {
    pub fn take_env(&mut self) -> Vec<String> {
        self.process.take().and_then(|process| process.env).unwrap_or_default()
    }

    pub fn take_annotations(&mut self) -> HashMap<String, String> {
        self.annotations.take().unwrap_or_default()
    }

    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Where the container's cgroup is made. `systemd`: by systemd, where it is written in systemd's form.
    #[must_use]
    pub fn cgroup(&self, systemd: bool) -> Option<String> {
        let path = self.linux.as_ref()?.cgroups_path.as_deref().filter(|path| path.len() < PATH_MAX)?;
        plain(path).map(ToOwned::to_owned).or_else(|| scope(path).filter(|_| systemd))
    }
}

/// A path from the root of the hierarchy. Others are below a cgroup that is not said here.
fn plain(path: &str) -> Option<&str> {
    let components = path.strip_prefix('/')?;
    let usual = |component: &str| !matches!(component, "" | "." | "..");
    components.split('/').all(usual).then_some(path)
}

/// `slice:prefix:name` as runc's systemd driver reads it (`libcontainer/cgroups/systemd`, `getUnitName`).
fn scope(path: &str) -> Option<String> {
    let mut parts = path.split(':');
    let (slice, prefix, name) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || name.is_empty() || path.contains('/') {
        return None;
    }
    // Root's containers without a slice go there; a user's have their own.
    let parent = slice_path(if slice.is_empty() { "system.slice" } else { slice })?;
    Some(match name.strip_suffix(".slice") {
        Some(_) => format!("{parent}/{name}"),
        None => format!("{parent}/{prefix}-{name}.scope"),
    })
}

/// `a-b.slice` is below `a.slice`; `-.slice` is the root.
fn slice_path(slice: &str) -> Option<String> {
    let stem = slice.strip_suffix(".slice").filter(|_| slice.len() <= NAME_MAX)?;
    if stem == "-" {
        return Some(String::new());
    }
    let mut path = String::with_capacity(slice.len() * 2);
    let ends = stem.match_indices('-').map(|(end, _)| end).chain([stem.len()]);
    let mut begin = 0;
    for end in ends {
        if end == begin {
            return None;
        }
        path.extend(["/", &stem[..end], ".slice"]);
        begin = end + 1;
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(path: &str, systemd: bool) -> Option<String> {
        let json = serde_json::json!({ "linux": { "cgroupsPath": path } }).to_string();
        parse::<Spec>(json.as_bytes()).cgroup(systemd)
    }

    #[test]
    fn a_path_from_the_root_is_the_cgroup_itself() {
        for path in ["/default/web", "/kubepods/burstable/pod1/2", "/a"] {
            assert_eq!(cgroup(path, false).as_deref(), Some(path));
        }
        for path in ["", "/", "web", "a/b", "//a", "/a/../b", "/a/", "/./a", "system.slice:runc:a"] {
            assert_eq!(cgroup(path, false), None, "{path}");
        }
    }

    #[test]
    fn a_scope_is_below_all_the_slices_in_its_name() {
        let is = |path, expected| assert_eq!(cgroup(path, true).as_deref(), Some(expected), "{path}");
        is(
            "kubepods-besteffort-pod1_2.slice:cri-containerd:ab",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-containerd-ab.scope",
        );
        is("system.slice:nerdctl:ab", "/system.slice/nerdctl-ab.scope");
        is(":runc:ab", "/system.slice/runc-ab.scope");
        is("-.slice:runc:ab", "/runc-ab.scope");
        is("user.slice:x:y.slice", "/user.slice/y.slice");
    }

    #[test]
    fn what_runc_would_refuse_is_no_cgroup() {
        for path in [
            "",
            ":",
            "::",
            "a.slice:b",
            "a.slice:b:c:d",
            "a:b:c",
            ".slice:b:c",
            "a--b.slice:b:c",
            "-a.slice:b:c",
            "a-.slice:b:c",
            "a/b.slice:b:c",
            "a.slice:b:c/d",
            "a.slice:b:",
        ] {
            assert_eq!(cgroup(path, true), None, "{path}");
        }
    }

    #[test]
    fn a_specification_with_holes_tells_what_it_has() {
        for json in ["", "null", "7", "[]", "{}", "{\"process\":7}", "{\"linux\":null,\"process\":{\"env\":null}}", "{"]
        {
            let mut spec = parse::<Spec>(json.as_bytes());
            assert_eq!((spec.cgroup(false), spec.annotation("a")), (None, None), "{json}");
            assert!(spec.take_env().is_empty(), "{json}");
        }
        let json = r#"{"ociVersion":"1.0.2","process":{"args":["sh"],"env":["A=b"]},"annotations":{"a":"b","c":""},
            "mounts":[{"destination":"/proc"}],"linux":{"cgroupsPath":"/x","namespaces":[{"type":"pid"}]}}"#;
        let mut spec = parse::<Spec>(json.as_bytes());
        assert_eq!((spec.annotation("a"), spec.annotation("c")), (Some("b"), None));
        assert_eq!(spec.take_env(), ["A=b"]);
        let huge = format!("{{\"annotations\":{{\"a\":\"{}\"}}}}", "b".repeat(SPEC_MAX));
        assert_eq!(parse::<Spec>(huge.as_bytes()), Spec::default());
    }

    proptest::proptest! {
        #[test]
        fn any_path_is_taken(path in "[-:./a\\PC]{0,40}", systemd: bool) {
            if let Some(found) = cgroup(&path, systemd) {
                proptest::prop_assert!(found.starts_with('/') && found.len() > 1);
            }
        }
    }
}
