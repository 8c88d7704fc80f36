//! Events and their origins in, OTLP bytes out.

pub(crate) mod args;
mod attributes;
pub mod batch;
pub mod guard;
pub mod log;
pub mod names;
pub mod note;
pub mod process;
pub mod proto;
pub mod resource;
pub mod semconv;
pub mod span;
pub mod text;
pub mod uid;
pub mod uprobe;
