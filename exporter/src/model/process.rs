//! What is told of a process, in records and in spans alike: its attributes, each written once.

use namespan_ebpf::wire::{self, flag};

use crate::config::Arguments;
use crate::enrich::{Attribution, Entered, Entry, Owner};
use crate::event::{Event, Exec, Exit, Kind};
use crate::model::attributes::Attributes;
use crate::model::uid::Uid;
use crate::model::{args, names, semconv, text};
use crate::trace::{SpanId, TraceId};

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
    /// Whose the process is.
    pub attribution: &'a Attribution,
    /// `fork_exec`, `reexec`, `fork` or `preexisting`.
    pub start_type: &'static str,
    /// Of the record; `None` where there is no log record.
    pub uid: Option<Uid>,
    /// What was last executed in the process; of use for exits only.
    pub image: Option<&'a Image>,
    /// The span that the event belongs to: its process's.
    pub span: Option<SpanId>,
    /// That span's trace, and its flags; `None`: not known, as the span began before we did.
    pub trace: Option<(TraceId, u8)>,
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

// Attributes follow in the order of their importance: a limit on their number cuts the last ones.

/// Names the process for ever.
pub(super) fn name(attributes: &mut Attributes<'_>, process: &wire::Process, creation_unix_ns: u64) {
    attributes.int(semconv::PROCESS_PID, process.tgid);
    attributes.time(semconv::PROCESS_CREATION_TIME, creation_unix_ns);
}

pub(super) fn identity(attributes: &mut Attributes<'_>, event: &Event<'_>, context: &Context<'_>) {
    name(attributes, &event.process, context.creation_unix_ns);
    match &event.kind {
        Kind::Exec(_) => {}
        Kind::Exit(exit) => {
            attributes.int(semconv::PROCESS_EXIT_CODE, exit.status.code());
            exit_error(attributes, *exit);
        }
        Kind::ExecFailed(failed) => {
            attributes.named(semconv::ERROR_TYPE, names::errno(failed.errno), "", failed.errno);
        }
    }
}

pub(super) fn executable(attributes: &mut Attributes<'_>, path: &[u8]) {
    attributes.text(semconv::PROCESS_EXECUTABLE_NAME, text::base_name(path));
    attributes.text(semconv::PROCESS_EXECUTABLE_PATH, path);
}

pub(super) fn exec_attributes(
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
    if mode != Arguments::Off && (exec.args.truncated() || args.cut()) {
        attributes.bool(semconv::ARGS_TRUNCATED, true);
        attributes.int(semconv::ARGS_LENGTH, exec.args.len.cast_signed());
    }
    attributes.text(semconv::SCRIPT_PATH, exec.script);
}

/// What a process runs, as its exec was seen.
pub(super) fn image(attributes: &mut Attributes<'_>, image: &Image, args: &args::Encoded) {
    executable(attributes, &image.path);
    attributes.present(semconv::PROCESS_COMMAND, args.argv0());
    attributes.int(semconv::PROCESS_ARGS_COUNT, image.args_count);
    attributes.flag(semconv::ARGS_REDACTED, args.redacted());
    attributes.text(semconv::SCRIPT_PATH, &image.script);
}

pub(super) fn exit_attributes(
    attributes: &mut Attributes<'_>,
    event: &Event<'_>,
    exit: &Exit,
    context: &Context<'_>,
    args: &args::Encoded,
) {
    if let Some(ran) = context.image {
        image(attributes, ran, args);
    }
    attributes.time(semconv::PROCESS_EXIT_TIME, context.time_unix_ns);
    let lived_ns = event.process.time_boot_ns.saturating_sub(event.process.start_boot_ns);
    attributes.double(semconv::DURATION, std::time::Duration::from_nanos(lived_ns).as_secs_f64());
    exit_reason(attributes, *exit);
}

/// `error.type` of an exit; none of a success.
pub(super) fn exit_error(attributes: &mut Attributes<'_>, exit: Exit) {
    match exit.status.signal() {
        Some(_) if exit.oom_killed() => attributes.text(semconv::ERROR_TYPE, b"OOMKilled"),
        Some(signal) => attributes.named(semconv::ERROR_TYPE, names::signal(signal), "SIG", signal),
        None if exit.status.code() != 0 => attributes.named(semconv::ERROR_TYPE, None, "", exit.status.code()),
        None => {}
    }
}

pub(super) fn exit_reason(attributes: &mut Attributes<'_>, exit: Exit) {
    let Some(signal) = exit.status.signal() else {
        attributes.text(semconv::EXIT_REASON, b"exited");
        return;
    };
    attributes.text(semconv::EXIT_REASON, if exit.oom_killed() { b"oom_killed" } else { b"signaled" });
    attributes.int(semconv::EXIT_SIGNAL_NUMBER, signal);
    attributes.named(semconv::EXIT_SIGNAL_NAME, names::signal(signal), "SIG", signal);
    attributes.bool(semconv::EXIT_CORE_DUMPED, exit.status.core_dumped());
}

/// Where a process comes from, and whose it is.
pub(super) fn origin(attributes: &mut Attributes<'_>, process: &wire::Process, attribution: &Attribution) {
    attributes.int(semconv::PROCESS_PARENT_PID, process.parent_tgid);
    if process.vpid != 0 {
        attributes.int(semconv::PROCESS_VPID, process.vpid);
    }
    attributes.int(semconv::PROCESS_USER_ID, process.euid);
    whose(attributes, attribution);
}

pub(super) fn provenance(attributes: &mut Attributes<'_>, event: &Event<'_>, context: &Context<'_>) {
    let process = &event.process;
    origin(attributes, process, context.attribution);
    attributes.text(semconv::START_TYPE, context.start_type.as_bytes());
    for (bit, key) in [
        (flag::UNLINKED, semconv::EXECUTABLE_UNLINKED),
        (flag::PATH_TRUNCATED, semconv::EXECUTABLE_TRUNCATED),
        (flag::PATH_FAULT, semconv::EXECUTABLE_UNREADABLE),
        (flag::CGROUP_TRUNCATED, semconv::CGROUP_TRUNCATED),
        (flag::CGROUP_FAULT, semconv::CGROUP_UNREADABLE),
        (flag::ENV_UNREAD, semconv::ENV_UNREAD),
    ] {
        attributes.flag(key, process.flags & bit != 0);
    }
    attributes.bool(semconv::PROCESS_INTERACTIVE, !event.tty.is_empty());
    attributes.text(semconv::TTY_NAME, event.tty);
}

/// How the process's container was found, and what there is to say of how it came there.
fn whose(attributes: &mut Attributes<'_>, attribution: &Attribution) {
    attributes.text(semconv::CONTAINER_ATTRIBUTION, attribution.how.as_str().as_bytes());
    attributes.text(semconv::CONTAINER_CERTAINTY, attribution.how.certainty().unwrap_or_default().as_bytes());
    attributes.text(semconv::CONTAINER_ENTRY, attribution.entry.map_or("", Entry::as_str).as_bytes());
    match &attribution.entered {
        Some(Entered::Host) => attributes.bool(semconv::CONTAINER_ENTERED_HOST, true),
        Some(Entered::Container(container)) => {
            attributes.text(semconv::CONTAINER_ENTERED_ID, container.id.as_bytes());
        }
        None => {}
    }
    attributes.text(semconv::CONTAINER_CLAIMED_ID, attribution.claimed.as_deref().unwrap_or_default().as_bytes());
    attributes.text(semconv::CONTAINER_NESTED_ID, attribution.nested.as_deref().unwrap_or_default().as_bytes());
    if let Owner::Host(Some(unit)) = &attribution.owner {
        attributes.text(semconv::SYSTEMD_UNIT, unit.name.as_bytes());
        attributes.text(semconv::SYSTEMD_USER_UNIT, unit.user_unit.as_deref().unwrap_or_default().as_bytes());
    }
}

pub(super) fn credentials(attributes: &mut Attributes<'_>, process: &wire::Process) {
    attributes.int_unless(semconv::PROCESS_REAL_USER_ID, process.uid, process.euid);
    attributes.int_unless(semconv::PROCESS_SAVED_USER_ID, process.suid, process.euid);
    attributes.int(semconv::GROUP_ID, process.egid);
    attributes.int_unless(semconv::REAL_GROUP_ID, process.gid, process.egid);
    attributes.int_unless(semconv::SAVED_GROUP_ID, process.sgid, process.egid);
}

pub(super) fn surroundings(attributes: &mut Attributes<'_>, event: &Event<'_>) {
    let process = &event.process;
    attributes.cgroup(event);
    attributes.text(semconv::UTS_NODENAME, event.nodename);
    spaces(attributes, process);
}

/// Namespaces and cgroups by their numbers.
pub(super) fn spaces(attributes: &mut Attributes<'_>, process: &wire::Process) {
    for (key, inode) in semconv::NAMESPACE_INODES.iter().zip(process.namespaces) {
        attributes.int_unless(key, inode, 0);
    }
    for (key, id) in [(semconv::CGROUP_ID, process.cgroup_id), (semconv::CGROUP_V1_ID, process.cgroup_v1_id)] {
        if id != 0 {
            attributes.int(key, id.cast_signed());
        }
    }
}

pub(super) fn lineage(attributes: &mut Attributes<'_>, event: &Event<'_>, context: &Context<'_>) {
    let process = &event.process;
    relatives(attributes, process, context.parent_creation_unix_ns);
    attributes.text(semconv::COMM, comm(process));
    attributes.int_unless(semconv::TID, process.tid, process.tgid);
    exec_ids(attributes, process);
}

pub(super) fn relatives(attributes: &mut Attributes<'_>, process: &wire::Process, parent_creation_unix_ns: u64) {
    // 0 is what init's own session and group are until it makes some: nobody leads them.
    attributes.int_unless(semconv::PROCESS_GROUP_LEADER_PID, process.group_leader, 0);
    attributes.int_unless(semconv::PROCESS_SESSION_LEADER_PID, process.session_leader, 0);
    if parent_creation_unix_ns != 0 {
        attributes.time(semconv::PARENT_CREATION_TIME, parent_creation_unix_ns);
    }
}

pub(super) fn exec_ids(attributes: &mut Attributes<'_>, process: &wire::Process) {
    attributes.int(semconv::SELF_EXEC_ID, process.self_exec_id.cast_signed());
    attributes.int(semconv::PARENT_EXEC_ID, process.parent_exec_id.cast_signed());
}

pub(super) fn comm(process: &wire::Process) -> &[u8] {
    first_part(&process.comm)
}

pub(super) fn first_part(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

pub(super) fn first_filled<const N: usize>(candidates: [&[u8]; N]) -> &[u8] {
    candidates.into_iter().map(first_part).find(|candidate| !candidate.is_empty()).unwrap_or_default()
}
