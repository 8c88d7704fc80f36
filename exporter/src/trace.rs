//! Which trace a process belongs to, and by which ids: W3C Trace Context, stable span ids, sampling.

pub mod context;
pub mod ids;
mod sampler;

pub use context::{Remote, SpanContext, SpanId, TraceId};
pub use sampler::is_sampled;
