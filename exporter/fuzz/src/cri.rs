//! What a runtime says through the CRI, in protobuf with JSON inside.

use namespan::fuzz;

use crate::container::{is_bounded, is_place, labels};
use crate::part;

pub fn check(mut data: &[u8]) {
    let container = part(&mut data);
    for (container, place) in fuzz::cri(container, data, &labels()) {
        is_bounded(&container);
        is_place(&place);
    }
}
