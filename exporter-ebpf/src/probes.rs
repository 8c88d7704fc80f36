//! One hook family each.

mod exec;
mod exec_failed;
mod exit;
