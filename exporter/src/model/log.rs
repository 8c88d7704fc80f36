//! An event and what is known about it in, the bytes of one OTLP `LogRecord` out.

pub(crate) mod args;
mod attributes;
#[cfg(test)]
mod tests;

use namespan_ebpf::wire::{self, flag};

use self::attributes::Attributes;
use crate::config::{Arguments, AttributeLimits};
use crate::event::{Event, Exec, ExecFailed, Exit, ExitStatus, Kind};
use crate::model::{names, proto, semconv, text};
use crate::redact::Redactor;

const INFO: u8 = 9;
const WARN: u8 = 13;
const ERROR: u8 = 17;

/// Fields of `LogRecord`, in the order in which they are written.
mod field {
    pub const TIME: u32 = 1;
    pub const SEVERITY: u32 = 2;
    pub const BODY: u32 = 5;
    pub const ATTRIBUTES: u32 = 6;
    pub const DROPPED_ATTRIBUTES: u32 = 7;
    pub const OBSERVED_TIME: u32 = 11;
    pub const EVENT_NAME: u32 = 12;
}

/// What is known about an event, but not by the kernel. Times are nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub time_unix_ns: u64,
    /// When the record was read from the ring.
    pub observed_unix_ns: u64,
    /// Of the fork, truncated to 10 ms.
    pub creation_unix_ns: u64,
    /// Of the parent's fork, truncated to 10 ms; 0: unknown.
    pub parent_creation_unix_ns: u64,
    /// How the record's container was found: `runtime_event`, `runtime_api`, `cgroup_path` or `none`.
    pub attribution: &'static str,
    /// `fork_exec`, `reexec`, `fork` or `preexisting`.
    pub start_type: &'static str,
    /// What was last executed in the process; of use for exits only.
    pub image: Option<&'a Image>,
}

/// What is remembered of an exec until the exit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub path: Vec<u8>,
    /// `argv[0]`, as it was.
    pub command: Vec<u8>,
    pub args_count: u32,
    /// Empty: not a script.
    pub script: Vec<u8>,
}

/// Writes records; keeps its buffers, so that a record costs no allocation.
#[derive(Debug)]
pub struct Encoder {
    arguments: Arguments,
    limits: AttributeLimits,
    redactor: Redactor,
    body: text::Line,
    args: args::Encoded,
    scratch: Vec<u8>,
}

impl Encoder {
    #[must_use]
    pub fn new(arguments: Arguments, limits: AttributeLimits) -> Self {
        Self {
            arguments,
            limits,
            redactor: Redactor::new(),
            body: text::Line::default(),
            args: args::Encoded::default(),
            scratch: Vec::new(),
        }
    }

    /// Appends the fields of one `LogRecord`, without tag and length of the record itself.
    pub fn encode(&mut self, event: &Event<'_>, context: &Context<'_>, out: &mut Vec<u8>) {
        self.prepare(event, context);
        let (name, severity) = match &event.kind {
            Kind::Exec(_) => (semconv::EVENT_EXEC, INFO),
            Kind::ExecFailed(_) => (semconv::EVENT_EXEC, WARN),
            Kind::Exit(exit) => (semconv::EVENT_EXIT, exit_severity(exit.status)),
        };
        proto::fixed64_field(out, field::TIME, context.time_unix_ns);
        proto::varint_field(out, field::SEVERITY, u64::from(severity));
        proto::any_field(out, field::BODY, proto::Value::Text(self.body.as_bytes()));
        let mut attributes = Attributes::new(out, self.limits, &mut self.scratch);
        identity(&mut attributes, event, context);
        match &event.kind {
            Kind::Exec(exec) => exec_attributes(&mut attributes, event, exec, &self.args, self.arguments),
            Kind::Exit(exit) => exit_attributes(&mut attributes, event, exit, context, &self.args),
            Kind::ExecFailed(failed) => executable(&mut attributes, failed.path),
        }
        provenance(&mut attributes, event, context);
        credentials(&mut attributes, &event.process);
        surroundings(&mut attributes, event);
        lineage(&mut attributes, event, context);
        let dropped = attributes.dropped();
        if dropped > 0 {
            proto::varint_field(out, field::DROPPED_ATTRIBUTES, u64::from(dropped));
        }
        proto::fixed64_field(out, field::OBSERVED_TIME, context.observed_unix_ns);
        proto::len_field(out, field::EVENT_NAME, name.as_bytes());
    }

    /// Fills `body` and `args`: one pass over the arguments serves both.
    fn prepare(&mut self, event: &Event<'_>, context: &Context<'_>) {
        self.body.clear();
        self.args.clear();
        match &event.kind {
            Kind::Exec(exec) => {
                self.body.push(b"exec ");
                self.body.push(first_filled([exec.path, comm(&event.process), b"?"]));
                self.args.fill(exec.args, self.arguments, self.limits, &mut self.redactor, &mut self.body);
            }
            Kind::Exit(exit) => {
                let image = context.image;
                if let Some(image) = image {
                    self.args.command(&image.command, self.arguments, &mut self.redactor);
                }
                let name = image.map_or(&b""[..], |image| base_name(&image.path));
                self.body.push(b"exit ");
                self.body.push(first_filled([name, comm(&event.process), b"?"]));
                self.push_status(exit.status);
            }
            Kind::ExecFailed(failed) => {
                self.body.push(b"exec failed ");
                self.body.push(failed.path);
                self.body.push(b": ");
                self.push_errno(failed);
            }
        }
    }

    fn push_status(&mut self, status: ExitStatus) {
        let (word, number, name) = match status.signal() {
            Some(signal) => (&b" signal "[..], signal, names::signal(signal)),
            None => (&b" code "[..], status.code(), None),
        };
        self.body.push(word);
        self.push_named(name, number);
        if status.core_dumped() {
            self.body.push(b" (core dumped)");
        }
    }

    fn push_errno(&mut self, failed: &ExecFailed<'_>) {
        self.push_named(names::errno(failed.errno), failed.errno);
    }

    fn push_named(&mut self, name: Option<&str>, number: u32) {
        self.scratch.clear();
        text::decimal(&mut self.scratch, number.into());
        self.body.push(name.map_or(&self.scratch, str::as_bytes));
    }
}

/// What asks a program to end is no problem; what a bug in it causes is an error; the rest is odd.
fn exit_severity(status: ExitStatus) -> u8 {
    match status.signal().map(|signal| names::signal(signal).unwrap_or_default()) {
        Some("SIGTERM" | "SIGINT" | "SIGHUP" | "SIGPIPE") => INFO,
        Some("SIGSEGV" | "SIGABRT" | "SIGBUS" | "SIGILL" | "SIGFPE") => ERROR,
        None if status.code() == 0 => INFO,
        Some(_) | None => WARN,
    }
}

// Attributes follow in the order of their importance: a limit on their number cuts the last ones.

fn identity(attributes: &mut Attributes<'_>, event: &Event<'_>, context: &Context<'_>) {
    attributes.int(semconv::PROCESS_PID, event.process.tgid);
    attributes.time(semconv::PROCESS_CREATION_TIME, context.creation_unix_ns);
    match &event.kind {
        Kind::Exec(_) => {}
        Kind::Exit(exit) => {
            attributes.int(semconv::PROCESS_EXIT_CODE, exit.status.code());
            match exit.status.signal() {
                Some(signal) => attributes.named(semconv::ERROR_TYPE, names::signal(signal), "SIG", signal),
                None if exit.status.code() != 0 => {
                    attributes.named(semconv::ERROR_TYPE, None, "", exit.status.code());
                }
                None => {}
            }
        }
        Kind::ExecFailed(failed) => {
            attributes.named(semconv::ERROR_TYPE, names::errno(failed.errno), "", failed.errno);
        }
    }
}

fn executable(attributes: &mut Attributes<'_>, path: &[u8]) {
    attributes.text(semconv::PROCESS_EXECUTABLE_NAME, base_name(path));
    attributes.text(semconv::PROCESS_EXECUTABLE_PATH, path);
}

fn exec_attributes(
    attributes: &mut Attributes<'_>,
    event: &Event<'_>,
    exec: &Exec<'_>,
    args: &args::Encoded,
    mode: Arguments,
) {
    executable(attributes, exec.path);
    attributes.present(semconv::PROCESS_COMMAND, args.argv0());
    if mode != Arguments::Off && !args.is_empty() {
        attributes.array(semconv::PROCESS_COMMAND_ARGS, args.elements());
    }
    let unreadable = event.process.flags & flag::ARGS_FAULT != 0;
    if exec.args.argc > 0 || !unreadable {
        attributes.int(semconv::PROCESS_ARGS_COUNT, exec.args.argc);
    }
    attributes.flag(semconv::ARGS_UNREADABLE, unreadable);
    attributes.flag(semconv::ARGS_REDACTED, args.redacted());
    if mode != Arguments::Off && exec.args.truncated() {
        attributes.bool(semconv::ARGS_TRUNCATED, true);
        attributes.int(semconv::ARGS_LENGTH, exec.args.len.cast_signed());
    }
    attributes.text(semconv::SCRIPT_PATH, exec.script);
}

fn exit_attributes(
    attributes: &mut Attributes<'_>,
    event: &Event<'_>,
    exit: &Exit,
    context: &Context<'_>,
    args: &args::Encoded,
) {
    if let Some(image) = context.image {
        executable(attributes, &image.path);
        attributes.present(semconv::PROCESS_COMMAND, args.argv0());
        attributes.int(semconv::PROCESS_ARGS_COUNT, image.args_count);
        attributes.flag(semconv::ARGS_REDACTED, args.redacted());
        attributes.text(semconv::SCRIPT_PATH, &image.script);
    }
    attributes.time(semconv::PROCESS_EXIT_TIME, context.time_unix_ns);
    let lived_ns = event.process.time_boot_ns.saturating_sub(event.process.start_boot_ns);
    attributes.double(semconv::DURATION, std::time::Duration::from_nanos(lived_ns).as_secs_f64());
    let Some(signal) = exit.status.signal() else {
        attributes.text(semconv::EXIT_REASON, b"exited");
        return;
    };
    attributes.text(semconv::EXIT_REASON, b"signaled");
    attributes.int(semconv::EXIT_SIGNAL_NUMBER, signal);
    attributes.named(semconv::EXIT_SIGNAL_NAME, names::signal(signal), "SIG", signal);
    attributes.bool(semconv::EXIT_CORE_DUMPED, exit.status.core_dumped());
}

fn provenance(attributes: &mut Attributes<'_>, event: &Event<'_>, context: &Context<'_>) {
    let process = &event.process;
    attributes.int(semconv::PROCESS_PARENT_PID, process.parent_tgid);
    if process.vpid != 0 {
        attributes.int(semconv::PROCESS_VPID, process.vpid);
    }
    attributes.int(semconv::PROCESS_USER_ID, process.euid);
    attributes.text(semconv::CONTAINER_ATTRIBUTION, context.attribution.as_bytes());
    attributes.text(semconv::START_TYPE, context.start_type.as_bytes());
    for (bit, key) in [
        (flag::UNLINKED, semconv::EXECUTABLE_UNLINKED),
        (flag::PATH_TRUNCATED, semconv::EXECUTABLE_TRUNCATED),
        (flag::PATH_FAULT, semconv::EXECUTABLE_UNREADABLE),
        (flag::CGROUP_TRUNCATED, semconv::CGROUP_TRUNCATED),
        (flag::CGROUP_FAULT, semconv::CGROUP_UNREADABLE),
    ] {
        attributes.flag(key, process.flags & bit != 0);
    }
    attributes.bool(semconv::PROCESS_INTERACTIVE, !event.tty.is_empty());
    attributes.text(semconv::TTY_NAME, event.tty);
}

fn credentials(attributes: &mut Attributes<'_>, process: &wire::Process) {
    attributes.int_unless(semconv::PROCESS_REAL_USER_ID, process.uid, process.euid);
    attributes.int_unless(semconv::PROCESS_SAVED_USER_ID, process.suid, process.euid);
    attributes.int(semconv::GROUP_ID, process.egid);
    attributes.int_unless(semconv::REAL_GROUP_ID, process.gid, process.egid);
    attributes.int_unless(semconv::SAVED_GROUP_ID, process.sgid, process.egid);
}

fn surroundings(attributes: &mut Attributes<'_>, event: &Event<'_>) {
    let process = &event.process;
    attributes.cgroup(event);
    attributes.text(semconv::UTS_NODENAME, event.nodename);
    for (key, inode) in semconv::NAMESPACE_INODES.iter().zip(process.namespaces) {
        attributes.int_unless(key, inode, 0);
    }
    for (key, id) in [(semconv::CGROUP_ID, process.cgroup_id), (semconv::CGROUP_V1_ID, process.cgroup_v1_id)] {
        if id != 0 {
            attributes.int(key, id.cast_signed());
        }
    }
}

fn lineage(attributes: &mut Attributes<'_>, event: &Event<'_>, context: &Context<'_>) {
    let process = &event.process;
    // 0 is what init's own session and group are until it makes some: nobody leads them.
    attributes.int_unless(semconv::PROCESS_GROUP_LEADER_PID, process.group_leader, 0);
    attributes.int_unless(semconv::PROCESS_SESSION_LEADER_PID, process.session_leader, 0);
    if context.parent_creation_unix_ns != 0 {
        attributes.time(semconv::PARENT_CREATION_TIME, context.parent_creation_unix_ns);
    }
    attributes.text(semconv::COMM, comm(process));
    attributes.int_unless(semconv::TID, process.tid, process.tgid);
    attributes.int(semconv::SELF_EXEC_ID, process.self_exec_id.cast_signed());
    attributes.int(semconv::PARENT_EXEC_ID, process.parent_exec_id.cast_signed());
}

fn comm(process: &wire::Process) -> &[u8] {
    first_part(&process.comm)
}

fn first_part(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

fn first_filled<const N: usize>(candidates: [&[u8]; N]) -> &[u8] {
    candidates.into_iter().map(first_part).find(|candidate| !candidate.is_empty()).unwrap_or_default()
}
