//! What containerd says, in protobuf with JSON inside.

use namespan::fuzz;

use crate::container::{is_bounded, is_place, labels};
use crate::part;

pub fn check(mut data: &[u8]) {
    let _of = fuzz::containerd_event(data);
    let container = part(&mut data);
    if let Some((container, place)) = fuzz::containerd(container, data, &labels()) {
        assert!(!container.id.is_empty());
        is_bounded(&container);
        is_place(&place);
    }
}
