//! Namespan's user side: a straight line from the ring buffer to the collector, one module per stage, in this order.

#![forbid(unsafe_code)]

pub mod config;
pub mod event;
