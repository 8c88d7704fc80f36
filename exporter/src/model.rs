//! Events and their origins in, OTLP bytes out.

pub mod batch;
pub mod log;
pub mod names;
pub mod proto;
pub mod resource;
pub mod semconv;
pub mod text;
