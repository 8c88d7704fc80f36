//! An OCI bundle, as far as it matters here.

use std::io;

use super::folder::{Content, Folder};
use crate::enrich::oci::Spec;

/// Largest file that is read of one container, in bytes.
pub const CONFIG_MAX: usize = 1 << 20;
/// Longest content of a file with a pid, in bytes.
pub const PID_MAX: usize = 32;

/// The bundle's `config.json`, with the time at which it was written.
pub fn spec(bundle: &Folder) -> io::Result<(Spec, u64)> {
    let content: Content = bundle.file("config.json", CONFIG_MAX)?;
    Ok((content.json()?, content.written))
}
