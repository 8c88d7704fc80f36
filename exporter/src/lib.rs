//! Namespan's user side: a straight line from the ring buffer to the collector, one module per stage, in this order.

#![deny(unsafe_code)]

pub mod cli;
pub mod config;
pub mod pipeline;
pub mod reload;
pub mod sandbox;

pub mod attach;
pub mod uprobe;
pub mod guard;
pub mod ring;
pub mod decode;
pub mod event;
pub mod clock;
pub mod enrich;
pub mod trace;
pub mod processes;
pub mod redact;
pub mod model;
pub mod console;
pub mod queue;
pub mod ship;
pub mod telemetry;
pub mod lifecycle;
pub mod own_log;

mod lock;
pub mod check;
pub mod list;
#[doc(hidden)]
pub mod fuzz;
