//! A YAML file: what is taken is taken alike the next time, and what is refused is refused in words that show no header.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::AsRawFd as _;

use namespan::cli::Run;
use namespan::config::Config;
use rustix::fs::{MemfdFlags, memfd_create};

pub fn check(data: &[u8]) {
    let mut file = File::from(memfd_create("namespan.yaml", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(data).unwrap();
    file.rewind().unwrap();
    let run = Run { config: Some(format!("/proc/self/fd/{}", file.as_raw_fd()).into()), ..Run::default() };
    let load = || Config::load(&run, &|_| None);
    match load() {
        Ok(config) => {
            let again = load().unwrap();
            assert_eq!(config, again);
            assert_eq!(config.needs_restart(&again), Vec::<&str>::new());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
