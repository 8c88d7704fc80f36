//! Programs that are told of, or stopped, before they run an instruction of their own: what policies ask for, how they are read
//! and compiled, what the kernel is told and does, and what it says that it has done.

pub mod spec;
pub mod parse;
pub mod check;
pub mod compile;
pub mod evaluate;
pub mod explain;
pub mod ask;

pub mod place;
pub mod load;
pub mod self_test;
pub mod persist;
pub mod counters;
pub mod decision;
