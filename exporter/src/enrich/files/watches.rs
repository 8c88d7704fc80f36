//! Which folders are watched, and for what: what changes in them comes in, what to look at goes out.

use std::collections::{BTreeSet, HashMap};
use std::io;

use super::folder::{Ears, Folder, Heard};

/// What may have changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spot {
    Users,
    Tree(Option<u32>),
    Group(Option<u32>, String),
    Container(Option<u32>, String, String),
}

#[derive(Default)]
pub struct Watches {
    ears: Option<Ears>,
    /// The way to the folders of several trees may be the same.
    spots: HashMap<i32, BTreeSet<Spot>>,
    /// Not everything can be watched: look at all of it before each answer.
    pub deaf: bool,
}

impl Watches {
    /// Begins anew, with nothing watched.
    pub fn begin(&mut self) -> io::Result<Ears> {
        let ears = Ears::new()?;
        *self = Self { ears: Some(ears.clone()), ..Self::default() };
        Ok(ears)
    }

    /// What has happened since, without waiting. False: there is more.
    pub fn hear(&mut self, dirty: &mut BTreeSet<Spot>, overflow: &mut bool) -> bool {
        let Some(ears) = self.ears.clone() else { return true };
        ears.hear(|heard| match heard {
            Heard::Changed(watch) => dirty.extend(self.spots.get(&watch).into_iter().flatten().cloned()),
            Heard::Over(watch) => {
                self.spots.remove(&watch);
            }
            Heard::Overflow => *overflow = true,
        })
    }

    /// The number of the watch; the same one for the same folder.
    pub fn watch(&mut self, folder: &Folder, spot: Spot) -> Option<i32> {
        match self.ears.as_ref()?.watch(folder) {
            Ok(watch) => {
                self.spots.entry(watch).or_default().insert(spot);
                Some(watch)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.deaf, true) {
                    tracing::warn!(%error, "folders of containers cannot be watched; fs.inotify.max_user_watches helps");
                }
                None
            }
        }
    }

    pub fn forget(&mut self, watch: Option<i32>, spot: &Spot) {
        let Some(watch) = watch else { return };
        let Some(spots) = self.spots.get_mut(&watch) else { return };
        spots.remove(spot);
        if spots.is_empty() {
            self.spots.remove(&watch);
            if let Some(ears) = &self.ears {
                ears.forget(watch);
            }
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.spots.len()
    }
}
