//! A container as its runtime describes it.

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Full id, 64 hexadecimal digits for most runtimes.
    pub id: String,
    /// `docker`, `containerd`, ...
    pub runtime: &'static str,
    /// `None`: no runtime has told (yet).
    pub name: Option<String>,
    pub image: Option<Image>,
    /// Allowed labels only, by key.
    pub labels: Vec<(String, String)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Repository, without tag or digest.
    pub name: String,
    pub tags: Vec<String>,
    pub id: Option<String>,
    pub repo_digests: Vec<String>,
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

pub(super) fn is_lower_hex(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
