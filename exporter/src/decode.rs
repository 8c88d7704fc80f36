//! Stage 2: the bytes of one ring record become an [`Event`]. Total: any bytes give an event or an error, never a panic.

use namespan_ebpf::wire::{self, flag, kind, section};
use thiserror::Error;
use zerocopy::FromBytes;

use crate::event::{Args, CgroupPath, EnvContext, Event, Exec, ExecFailed, Exit, ExitStatus, Kind, ProcessId};

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("record of {have} bytes ends within its fixed part of {need}")]
    Short { have: usize, need: usize },
    #[error("record of {have} bytes says it is {said} long")]
    Length { have: usize, said: u32 },
    #[error("unknown kind of record: {kind}")]
    Kind { kind: u16 },
    #[error("unknown {what} of a decision: {value}")]
    Decision { what: &'static str, value: u8 },
    #[error("sections of {said} bytes in {have}")]
    Sections { have: usize, said: usize },
}

/// Decodes one record as the kernel side wrote it, by the layout of [`wire`].
pub fn event(record: &[u8]) -> Result<Event<'_>, DecodeError> {
    let (process, rest) = fixed::<wire::Process>(record)?;
    if process.len as usize != record.len() {
        return Err(DecodeError::Length { have: record.len(), said: process.len });
    }
    match process.kind {
        kind::EXEC => {
            let (exec, rest) = fixed::<wire::Exec>(rest)?;
            let sections = Sections::of(&process, rest)?;
            let args = Args {
                head: sections.get(section::ARGS_HEAD),
                tail: sections.get(section::ARGS_TAIL),
                len: exec.args_len,
                argc: exec.argc,
            };
            let (path, script) = (sections.get(section::PATH), sections.get(section::SCRIPT));
            let env = EnvContext {
                traceparent: sections.get(section::TRACEPARENT),
                tracestate: sections.get(section::TRACESTATE),
            };
            let ancestor = ProcessId::found(exec.ancestor_tgid, exec.ancestor_start_boot_ns);
            Ok(sections.event(process, Kind::Exec(Exec { path, script, args, ancestor, env })))
        }
        kind::EXIT => {
            let (exit, rest) = fixed::<wire::Exit>(rest)?;
            let image = ProcessId::found(exit.image_tgid, exit.image_start_boot_ns);
            let oom_victim = process.flags & flag::OOM_VICTIM != 0;
            let exit = Exit { status: ExitStatus(exit.status), image, oom_victim };
            Ok(Sections::of(&process, rest)?.event(process, Kind::Exit(exit)))
        }
        kind::EXEC_FAILED => {
            let (failed, rest) = fixed::<wire::ExecFailed>(rest)?;
            let sections = Sections::of(&process, rest)?;
            let image = ProcessId::found(failed.image_tgid, failed.image_start_boot_ns);
            let failed = ExecFailed { path: sections.get(section::PATH), errno: failed.errno, image };
            Ok(sections.event(process, Kind::ExecFailed(failed)))
        }
        kind => Err(DecodeError::Kind { kind }),
    }
}

pub(crate) fn fixed<T: FromBytes>(bytes: &[u8]) -> Result<(T, &[u8]), DecodeError> {
    T::read_from_prefix(bytes).map_err(|_| DecodeError::Short { have: bytes.len(), need: size_of::<T>() })
}

pub(crate) struct Sections<'a>([&'a [u8]; section::COUNT]);

impl<'a> Sections<'a> {
    pub(crate) fn of(process: &wire::Process, mut rest: &'a [u8]) -> Result<Self, DecodeError> {
        let have = rest.len();
        let said = process.sections.iter().copied().map(usize::from).sum();
        if have != said {
            return Err(DecodeError::Sections { have, said });
        }
        let mut sections = [&[][..]; section::COUNT];
        for (section, len) in sections.iter_mut().zip(process.sections) {
            (*section, rest) = rest.split_at_checked(usize::from(len)).ok_or(DecodeError::Sections { have, said })?;
        }
        Ok(Self(sections))
    }

    pub(crate) fn get(&self, index: usize) -> &'a [u8] {
        self.0.get(index).copied().unwrap_or_default()
    }

    fn event(&self, process: wire::Process, kind: Kind<'a>) -> Event<'a> {
        Event {
            process,
            nodename: self.get(section::NODENAME),
            tty: self.get(section::TTY),
            cgroup: CgroupPath(self.get(section::CGROUP)),
            cgroup_v1: CgroupPath(self.get(section::CGROUP_V1)),
            kind,
        }
    }
}
