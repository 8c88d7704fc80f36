//! What each live process last executed, remembered from its exec for the record of its exit; bounded, harmless to lose.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::event::{Event, Exec, ProcessId};
use crate::model::log::Image;

/// Live processes remembered at most; an exit beyond them lacks the executable's name and says no more than it knows.
const ENTRIES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(32_767);
/// Bytes of paths and names remembered at most.
const BYTES: usize = 16 << 20;
/// Longest `argv[0]` remembered; the exec's own record has it whole.
const COMMAND_MAX: usize = 1024;

#[derive(Debug)]
pub struct Images {
    images: LruCache<ProcessId, Image>,
    bytes: usize,
}

impl Images {
    #[must_use]
    pub fn new() -> Self {
        Self { images: LruCache::new(ENTRIES), bytes: 0 }
    }

    /// Remembers what a process executes now; what it executed before is forgotten.
    pub fn exec(&mut self, event: &Event<'_>, exec: &Exec<'_>) {
        let command = exec.args.iter().next().unwrap_or_default();
        let image = Image {
            path: exec.path.to_vec(),
            command: command.get(..COMMAND_MAX).unwrap_or(command).to_vec(),
            args_count: exec.args.argc,
            script: exec.script.to_vec(),
        };
        self.bytes += size(&image);
        if let Some((_, forgotten)) = self.images.push(event.id(), image) {
            self.bytes -= size(&forgotten);
        }
        while self.bytes > BYTES
            && let Some((_, forgotten)) = self.images.pop_lru()
        {
            self.bytes -= size(&forgotten);
        }
    }

    /// What a process executed; not a use in the sense of the least recently used.
    #[must_use]
    pub fn of(&self, process: ProcessId) -> Option<&Image> {
        self.images.peek(&process)
    }

    /// Forgets a process that has exited.
    pub fn exit(&mut self, process: ProcessId) {
        if let Some(forgotten) = self.images.pop(&process) {
            self.bytes -= size(&forgotten);
        }
    }
}

impl Default for Images {
    fn default() -> Self {
        Self::new()
    }
}

fn size(image: &Image) -> usize {
    image.path.len() + image.command.len() + image.script.len()
}

#[cfg(test)]
mod tests {
    use namespan_ebpf::wire;
    use zerocopy::FromZeros as _;

    use super::*;
    use crate::event::{Args, CgroupPath, Kind};

    fn exec(tgid: u32, path: &[u8]) -> (Event<'_>, Exec<'_>) {
        let mut process = wire::Process::new_zeroed();
        process.tgid = tgid;
        process.start_boot_ns = 7;
        let args = Args { head: b"ls\0-l\0", tail: b"", len: 6, argc: 2 };
        let exec = Exec { path, script: b"", args };
        let none = CgroupPath(b"");
        (
            Event { process, nodename: b"", tty: b"", cgroup: none, cgroup_v1: none, kind: Kind::Exec(exec.clone()) },
            exec,
        )
    }

    #[test]
    fn an_exec_is_known_until_the_exit_and_a_reused_pid_is_another_process() {
        let mut images = Images::new();
        let (event, exec) = exec(1, b"/bin/ls");
        images.exec(&event, &exec);
        let image = images.of(ProcessId { tgid: 1, start_boot_ns: 7 }).unwrap();
        assert_eq!(
            (image.path.as_slice(), image.command.as_slice(), image.args_count),
            (&b"/bin/ls"[..], &b"ls"[..], 2)
        );
        assert_eq!(images.of(ProcessId { tgid: 1, start_boot_ns: 8 }), None);
        images.exit(ProcessId { tgid: 1, start_boot_ns: 7 });
        assert_eq!((images.images.len(), images.bytes), (0, 0));
    }

    #[test]
    fn entries_and_bytes_stay_bounded() {
        let mut images = Images::new();
        let long = vec![b'a'; 4096];
        for tgid in 0..100_000 {
            let (event, exec) = exec(tgid, if tgid < 50_000 { &long } else { b"/bin/ls" });
            images.exec(&event, &exec);
            assert!(images.bytes <= BYTES);
        }
        assert_eq!(images.images.len(), ENTRIES.get());
        assert_eq!(images.bytes, images.images.iter().map(|(_, image)| size(image)).sum::<usize>());
    }

    #[test]
    fn a_second_exec_takes_the_place_of_the_first() {
        let mut images = Images::new();
        for path in [&b"/bin/sh"[..], b"/bin/ls"] {
            let (event, exec) = exec(1, path);
            images.exec(&event, &exec);
        }
        assert_eq!(images.of(ProcessId { tgid: 1, start_boot_ns: 7 }).unwrap().path, b"/bin/ls");
        assert_eq!(images.bytes, 9);
    }
}
