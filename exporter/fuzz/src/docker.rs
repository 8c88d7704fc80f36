//! What a Docker daemon says, in JSON.

use namespan::fuzz;

use crate::container::{is_bounded, labels};

pub fn check(data: &[u8]) {
    for container in fuzz::docker(data, &labels()) {
        assert!(!container.id.is_empty());
        is_bounded(&container);
    }
}
