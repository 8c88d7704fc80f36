//! What holds of every container, whoever describes it.

use namespan::enrich::container::{Container, Labels};
use namespan::enrich::runtime::Place;

/// Longest text that is kept of what a container's configuration says.
const TEXT_MAX: usize = 1024;

pub fn labels() -> Labels {
    Labels { sent: vec!["a*".to_owned(), "com.*".to_owned()], matched: vec!["tier".to_owned()] }
}

pub fn is_bounded(container: &Container) {
    let labels = labels();
    let Container { name, image, labels: sent, matched, service, pod, .. } = container;
    assert!(name.as_ref().is_none_or(|name| (1..=255).contains(&name.len())));
    assert!(sent.len() <= 64 && sent.is_sorted() && sent.iter().all(|(key, _)| labels.sends(key) && key.len() <= 128));
    assert!(matched.iter().all(|(key, _)| key == "tier"));
    assert!(service.attributes.len() <= 32);
    let pairs = [sent, matched, &service.attributes].into_iter().flatten().map(|(_, value)| value);
    let single = [&service.name, &service.namespace, &pod.uid, &pod.name, &pod.namespace, &pod.container];
    let image = image.iter().flat_map(|image| image.tags.iter().chain(&image.repo_digests).chain([&image.name]));
    for text in pairs.chain(single.into_iter().flatten()).chain(image) {
        assert!(text.len() <= TEXT_MAX, "{} bytes", text.len());
    }
}

pub fn is_place(place: &Place) {
    assert!(place.cgroup.as_ref().is_none_or(|path| path.starts_with('/') && path.len() > 1), "{place:?}");
    assert!(place.pid != Some(0));
}
