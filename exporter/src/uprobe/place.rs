//! What is known of a place that hits come from: which probe, which function, which file.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::attach::PlaceId;
use super::spec::Uprobe;

/// One probe at one function of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub probe: Arc<Uprobe>,
    /// As the programmer calls it; `provider:name` of a USDT probe; in hexadecimal where there is only an offset.
    pub function: String,
    /// Path of the file as its first process saw it. Other containers that share the file may have it elsewhere.
    pub binary: String,
    /// In the file, in bytes.
    pub offset: u64,
}

/// All places that hits may come from, known before the first hit does. What was known of a place that is gone stays known
/// until its last hit is read.
#[derive(Clone, Debug, Default)]
pub struct Places(Arc<RwLock<HashMap<PlaceId, Arc<Place>>>>);

impl Places {
    #[must_use]
    pub fn get(&self, id: PlaceId) -> Option<Arc<Place>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub fn insert(&self, id: PlaceId, place: Arc<Place>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(id, place);
    }

    pub fn remove(&self, id: PlaceId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}
