//! A program: all that a probe can be put on lies in its file.

use namespan::uprobe::elf::Image;
use namespan::uprobe::spec::{Expression, Function, Kind};

/// Functions that are resolved by name.
const TRIED: usize = 8;

pub fn check(data: &[u8]) {
    let Ok(image) = Image::parse(data) else { return };
    let len = data.len() as u64;
    let within = |function: &Function| {
        for kind in [Kind::Entry, Kind::Both] {
            let Ok(places) = image.resolve(function, kind) else { continue };
            assert!(!places.is_empty());
            for place in places {
                assert!(place.offset < len && place.returns.iter().all(|offset| *offset < len), "{place:?}");
            }
        }
    };
    for listing in image.functions() {
        assert!(listing.offset < len, "{listing:?}");
    }
    for listing in image.functions().take(TRIED) {
        within(&Function::Symbol(listing.name));
        within(&Function::Offset { symbol: Some(listing.symbol), offset: 1 });
    }
    for marker in image.markers().iter().take(TRIED) {
        assert!(marker.offset < len && marker.usdt.semaphore_offset.is_none_or(|offset| offset < len), "{marker:?}");
        within(&Function::Usdt { provider: marker.provider.clone(), name: marker.name.clone() });
    }
    within(&Function::Offset { symbol: None, offset: len / 2 });
    within(&Function::Pattern { regex: Expression::new(".").unwrap(), limit: 8 });
    assert_eq!(image.build_id().map(|id| id.len() * 2), image.build_id_hex().map(|hex| hex.len()));
    assert!(image.debug_file().is_none_or(|path| path.starts_with('/') && !path.contains("..")));
}
