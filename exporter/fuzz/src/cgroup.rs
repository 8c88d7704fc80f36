//! Paths of cgroups, the leaf first, v2 and v1 with 0xff between them: what is found in a path is a part of it.

use namespan::enrich::cgroup::{self, ContainerRef};
use namespan::event::CgroupPath;

pub fn check(data: &[u8]) {
    let (v2, v1) = data.split_at(data.iter().position(|byte| *byte == 0xff).unwrap_or(data.len()));
    let (v2, v1) = (CgroupPath(v2), CgroupPath(v1.strip_prefix(b"\xff").unwrap_or_default()));
    walks(v2);
    let Some(ContainerRef { id, runtime, root, in_v1, nested, pod_uid, .. }) = cgroup::resolve(v2, v1) else { return };
    let path = if in_v1 { v1 } else { v2 };
    assert!(!runtime.is_empty() && (1..=128).contains(&id.len()));
    assert!(root.leaf().windows(id.len()).any(|part| part == id.as_bytes()));
    assert!(path.0.ends_with(root.0), "the container's cgroup is not on the way");
    assert!(nested.is_none_or(|nested| path.0.windows(64).any(|part| part == nested.as_bytes())));
    assert!(pod_uid.is_none_or(|uid| matches!(uid.len(), 32 | 36)));
    // It is nobody's but the host's to say what is above.
    let ContainerRef { id: at_root, .. } = cgroup::resolve(root, CgroupPath(b"")).unwrap();
    assert_eq!(at_root, id);
}

fn walks(path: CgroupPath<'_>) {
    let mut up: Vec<_> = path.leaf_to_root().collect();
    up.reverse();
    assert!(path.root_to_leaf().eq(up.iter().copied()));
    let leaves: Vec<_> = path.from_root().map(CgroupPath::leaf).collect();
    assert_eq!(leaves, up);
    if let Some(unit) = cgroup::unit(path, CgroupPath(b"")) {
        assert!(up.contains(&unit.unit.as_bytes()));
    }
    let _ours = cgroup::is_unclaimed(path) && cgroup::is_systemd_s(path);
}
