//! What a process has of memory, descriptors and threads, and whether that grows.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use namespan_integration::host::state;

/// Between two looks.
const OFTEN: Duration = Duration::from_secs(1);
/// What memory may have grown by: an allocator keeps what the largest of outages took.
const MORE_KIB: u64 = 4096;
const MORE_PERCENT: u64 = 10;
/// Connections and lookups that just go on.
const MORE_FILES: u64 = 8;

#[derive(Clone, Copy, Debug)]
pub struct Vitals {
    pub memory_kib: u64,
    pub files: usize,
    pub threads: usize,
    /// Threads and children that have ended, and that nobody has waited for.
    pub zombies: usize,
}

impl Vitals {
    pub fn of(pid: i32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let names = |of: &str| fs::read_dir(format!("/proc/{pid}/{of}")).unwrap().flatten().map(|entry| entry.path());
        let threads: Vec<_> = names("task").collect();
        let children = threads.iter().filter_map(|thread| fs::read_to_string(thread.join("children")).ok());
        let children: Vec<_> = children
            .flat_map(|text| text.split_whitespace().map(|child| format!("/proc/{child}").into()).collect::<Vec<_>>())
            .collect();
        let has_ended = |process: &&PathBuf| state(process) == Some('Z');
        Self {
            memory_kib: memory.trim().strip_suffix(" kB").unwrap().parse().unwrap(),
            files: names("fd").count(),
            threads: threads.len(),
            zombies: threads.iter().chain(&children).filter(has_ended).count(),
        }
    }
}

/// All that was seen, in order.
pub struct Watch(Vec<(Duration, Vitals)>);

impl Watch {
    pub fn until(pid: i32, over: &AtomicBool) -> Self {
        let (start, mut seen) = (Instant::now(), Vec::new());
        let mut said = start;
        while !over.load(Relaxed) {
            let vitals = Vitals::of(pid);
            if said.elapsed() > Duration::from_secs(60) {
                said = Instant::now();
                println!("after {} s: {vitals:?}", start.elapsed().as_secs());
            }
            seen.push((start.elapsed(), vitals));
            thread::park_timeout(OFTEN);
        }
        Self(seen)
    }

    /// The second half is compared in itself: whatever fills up in the beginning has done so then.
    pub fn is_flat(&self) {
        let half = &self.0[self.0.len() / 2..];
        let (before, after) = half.split_at(half.len() / 2);
        let middle = |part: &[(Duration, Vitals)], of: fn(&Vitals) -> u64| {
            let mut all: Vec<_> = part.iter().map(|(_, vitals)| of(vitals)).collect();
            all.sort_unstable();
            all[all.len() / 2]
        };
        let memory = |part| middle(part, |vitals| vitals.memory_kib);
        let files = |part| middle(part, |vitals| vitals.files as u64);
        println!(
            "memory {} KiB, then {} KiB ({:+.0} KiB a minute); files {}, then {}",
            memory(before),
            memory(after),
            self.growth(),
            files(before),
            files(after)
        );
        assert!(memory(after) <= memory(before) * (100 + MORE_PERCENT) / 100 + MORE_KIB, "memory grows");
        assert!(files(after) <= files(before) + MORE_FILES, "descriptors are left open");
    }

    /// KiB a minute over the second half, by least squares.
    #[expect(clippy::cast_precision_loss, reason = "KiB of one process")]
    fn growth(&self) -> f64 {
        let half = &self.0[self.0.len() / 2..];
        let points = || half.iter().map(|(at, vitals)| (at.as_secs_f64() / 60.0, vitals.memory_kib as f64));
        let count = half.len() as f64;
        let mean = |sum: f64| sum / count;
        let (x, y) = (mean(points().map(|point| point.0).sum()), mean(points().map(|point| point.1).sum()));
        let both: f64 = points().map(|point| (point.0 - x) * (point.1 - y)).sum();
        let square: f64 = points().map(|point| (point.0 - x).powi(2)).sum();
        both / square
    }
}
