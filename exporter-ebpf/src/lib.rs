//! What the kernel side and the user side agree on: ring records, kernel fields, settings.
//!
//! Compiled for both targets, so a change of layout is a compile error, never a skew.
#![no_std]
#![forbid(unsafe_code)]

pub mod guard_wire;
pub mod offsets;
pub mod settings;
pub mod uprobe_wire;
pub mod wire;
