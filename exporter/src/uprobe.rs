//! Functions of programs, traced where a configuration says so: what is asked for, how it is read, where it is found, and what
//! the kernel does.

pub mod spec;
pub mod check;
pub mod parse;
pub mod print;
pub mod root;
pub mod elf;
pub mod registers;
pub mod attach;
pub mod detach;
pub mod place;
pub mod hit;
pub mod follow;
mod mounts;
mod multi;
mod sys;
