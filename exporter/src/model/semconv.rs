//! Every name that leaves the exporter, once, with its type, unit and meaning.
//!
//! Names without our prefix are those of the OpenTelemetry semantic conventions 1.44.0; `RC` (release candidate), `Dev`
//! (development) and `stable` are the stability its registry (`model/*/registry.yaml`) gives them. Names with the prefix
//! `namespan.` are ours, as `docs/general/naming.md` asks of applications.

/// Of every resource and scope.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";
/// Scope of exec and exit records; its version is the exporter's.
pub const SCOPE_EXEC: &str = "namespan.exec";
/// Scope of records of the guard.
pub const SCOPE_GUARD: &str = "namespan.guard";
/// Scope of records of uprobes' hits.
pub const SCOPE_UPROBE: &str = "namespan.uprobe";
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A process has replaced its image, or (severity WARN, `error.type` the errno's name) failed to.
pub const EVENT_EXEC: &str = "namespan.process.exec";
/// The last thread of a process has exited.
pub const EVENT_EXIT: &str = "namespan.process.exit";
/// A function was called, or an instruction was reached.
/// A uprobe can't be attached.
pub const EVENT_UPROBE_REFUSED: &str = "namespan.uprobe.refused";
pub const EVENT_UPROBE_HIT: &str = "namespan.uprobe.hit";
/// A function has returned.
pub const EVENT_UPROBE_RETURN: &str = "namespan.uprobe.return";
/// The guard has stopped a program, or would have.
pub const EVENT_ENFORCEMENT: &str = "namespan.enforcement.action";
/// What holds of the guard has changed: it enforces, or observes, or a policy of it is disarmed.
pub const EVENT_GUARD_STATUS: &str = "namespan.guard.status";
/// A runtime does not tell of its containers any more (severity WARN).
pub const EVENT_ATTRIBUTION_DEGRADED: &str = "namespan.attribution.degraded";
/// It does again.
pub const EVENT_ATTRIBUTION_RECOVERED: &str = "namespan.attribution.recovered";
/// Something that the settings ask for does not work here, as `namespan check` says (severity WARN); once, at the start, and
/// again when other settings are taken up.
pub const EVENT_STATUS: &str = "namespan.status";
/// Records are missing from what is told (severity ERROR); they are counted.
pub const EVENT_LOST: &str = "namespan.telemetry.lost";

// --- Resource -----------------------------------------------------------------------------------------------------------

/// string, Dev: machine id, of the systems that have one.
pub const HOST_ID: &str = "host.id";
/// string, Dev.
pub const HOST_NAME: &str = "host.name";
/// string, Dev: `amd64`, `arm64`, ...
pub const HOST_ARCH: &str = "host.arch";
/// string, Dev: always `linux`.
pub const OS_TYPE: &str = "os.type";
/// string, Dev: the kernel's release.
pub const OS_VERSION: &str = "os.version";
/// string, stable: `namespan`.
pub const TELEMETRY_DISTRO_NAME: &str = "telemetry.distro.name";
/// string, stable.
pub const TELEMETRY_DISTRO_VERSION: &str = "telemetry.distro.version";
/// string, stable.
pub const SERVICE_NAME: &str = "service.name";
/// string, stable.
pub const SERVICE_VERSION: &str = "service.version";
/// string, stable: of Namespan itself the host's id, as there is one Namespan a host.
pub const SERVICE_INSTANCE_ID: &str = "service.instance.id";
/// string, stable.
pub const SERVICE_NAMESPACE: &str = "service.namespace";
/// string, stable: all digits, never abbreviated.
pub const CONTAINER_ID: &str = "container.id";
/// string, Dev.
pub const CONTAINER_NAME: &str = "container.name";
/// string, Dev: `docker`, `containerd`, ...
pub const CONTAINER_RUNTIME_NAME: &str = "container.runtime.name";
/// string, stable: repository without tag.
pub const CONTAINER_IMAGE_NAME: &str = "container.image.name";
/// string[], stable.
pub const CONTAINER_IMAGE_TAGS: &str = "container.image.tags";
/// string, Dev.
pub const CONTAINER_IMAGE_ID: &str = "container.image.id";
/// string[], stable.
pub const CONTAINER_IMAGE_REPO_DIGESTS: &str = "container.image.repo_digests";
/// string, stable: of the runtime's labels, as the other names of Kubernetes.
pub const K8S_POD_UID: &str = "k8s.pod.uid";
/// string, stable.
pub const K8S_POD_NAME: &str = "k8s.pod.name";
/// string, stable.
pub const K8S_NAMESPACE_NAME: &str = "k8s.namespace.name";
/// string, stable: what the pod calls the container.
pub const K8S_CONTAINER_NAME: &str = "k8s.container.name";
/// string, Dev: the label's key follows, verbatim.
pub const CONTAINER_LABEL_PREFIX: &str = "container.label.";
/// string: containerd's namespace of a container.
pub const CONTAINER_NAMESPACE: &str = "namespan.container.namespace";
/// string: id of the user whose rootless runtime a container belongs to.
pub const CONTAINER_USER_ID: &str = "namespan.container.user.id";

// --- Process ------------------------------------------------------------------------------------------------------------

/// int, RC: in the host's PID namespace.
pub const LOG_RECORD_UID: &str = "log.record.uid";
pub const PROCESS_PID: &str = "process.pid";
/// int, RC: in the process's own PID namespace.
pub const PROCESS_VPID: &str = "process.vpid";
/// int, RC: in the host's PID namespace.
pub const PROCESS_PARENT_PID: &str = "process.parent_pid";
/// string ISO 8601, RC: of the fork, in steps of 10 ms as `/proc/<pid>/stat` has it.
pub const PROCESS_CREATION_TIME: &str = "process.creation.time";
/// string, RC: last component of the path.
pub const PROCESS_EXECUTABLE_NAME: &str = "process.executable.name";
/// string, RC: within the process's mount namespace. Of a failed exec: the path that was asked for.
pub const PROCESS_EXECUTABLE_PATH: &str = "process.executable.path";
/// string, RC: `argv[0]`.
pub const PROCESS_COMMAND: &str = "process.command";
/// string[], RC: all of argv.
pub const PROCESS_COMMAND_ARGS: &str = "process.command_args";
/// int, RC: true length of argv, whatever part of it is sent.
pub const PROCESS_ARGS_COUNT: &str = "process.args_count";
/// int, RC: effective uid in the host's user namespace.
pub const PROCESS_USER_ID: &str = "process.user.id";
/// int, RC: sent where it differs from the effective one.
pub const PROCESS_REAL_USER_ID: &str = "process.real_user.id";
/// int, RC: sent where it differs from the effective one.
pub const PROCESS_SAVED_USER_ID: &str = "process.saved_user.id";
/// int, RC: left out where nobody leads the group (init's own).
pub const PROCESS_GROUP_LEADER_PID: &str = "process.group_leader.pid";
/// int, RC: left out where nobody leads the session (init's own).
pub const PROCESS_SESSION_LEADER_PID: &str = "process.session_leader.pid";
/// bool, RC: has a controlling terminal.
pub const PROCESS_INTERACTIVE: &str = "process.interactive";
/// string, RC: a line of `/proc/<pid>/cgroup`; of a cgroup v1 hierarchy its path only.
pub const PROCESS_LINUX_CGROUP: &str = "process.linux.cgroup";
/// int, RC: `128 + signal` for a death by signal.
pub const PROCESS_EXIT_CODE: &str = "process.exit.code";
/// string ISO 8601, RC.
pub const PROCESS_EXIT_TIME: &str = "process.exit.time";
/// string, stable: exit code, signal or errno of what did not succeed.
pub const ERROR_TYPE: &str = "error.type";
/// int, stable.
pub const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
/// string, RC: of gRPC, the code's name.
pub const RPC_RESPONSE_STATUS_CODE: &str = "rpc.response.status_code";

// --- Ours ---------------------------------------------------------------------------------------------------------------

/// string: `runtime_event`, `runtime_api`, `runtime_files`, `cgroup_path`, `lineage`, `contradicted`, `unverified` or
/// `none`; how the record's container was found.
pub const CONTAINER_ATTRIBUTION: &str = "namespan.container.attribution";
/// string: `confirmed`, `inferred` or `refused`; how surely.
pub const CONTAINER_CERTAINTY: &str = "namespan.container.certainty";
/// string: `init`, `exec`, `nsenter` or `setup`; how the process came into its container.
pub const CONTAINER_ENTRY: &str = "namespan.container.entry";
/// string: id of the container whose namespaces the process has joined.
pub const CONTAINER_ENTERED_ID: &str = "namespan.container.entered.id";
/// bool: it is the host's namespaces that a container's process has joined.
pub const CONTAINER_ENTERED_HOST: &str = "namespan.container.entered.host";
/// string: id that the cgroup names, and that is not believed.
pub const CONTAINER_CLAIMED_ID: &str = "namespan.container.claimed.id";
/// string: what looks like an id below the container's own cgroup; the container may have chosen it.
pub const CONTAINER_NESTED_ID: &str = "namespan.container.nested.id";
/// string: unit of the system's manager, of a process on the host.
pub const SYSTEMD_UNIT: &str = "namespan.systemd.unit";
/// string: unit of a user's own manager.
pub const SYSTEMD_USER_UNIT: &str = "namespan.systemd.user_unit";
/// string: `socket` or `files`; by which a runtime tells of its containers.
pub const RUNTIME_SOURCE: &str = "namespan.runtime.source";
/// string: why.
pub const REASON: &str = "namespan.reason";
/// string[]: names, as in `namespan check`, of what does not work here; left out where everything does again.
pub const STATUS_LACKING: &str = "namespan.status.lacking";
/// string[], one of each: what was found, and what it means.
pub const STATUS_REASONS: &str = "namespan.status.reasons";
/// string[], one of each: what to do.
pub const STATUS_REMEDIES: &str = "namespan.status.remedies";
/// string: `kernel`, `decode`, `processes`, `queue`, `spool` or `collector`; where records were lost.
pub const LOST_STAGE: &str = "namespan.lost.stage";
/// int: how many.
pub const LOST_COUNT: &str = "namespan.lost.count";
/// string ISO 8601: nothing of it was lost before this time.
pub const LOST_START: &str = "namespan.lost.start";
/// string ISO 8601: all of it was lost by then.
pub const LOST_END: &str = "namespan.lost.end";
/// string: where records are shipped to, by the name that the settings give it; `main` is that of flags and variables.
pub const DESTINATION: &str = "namespan.destination";
/// string: `logs` or `traces`.
pub const SIGNAL: &str = "namespan.signal";
/// string: `fork_exec`, `reexec`, `fork` or `preexisting`; how the process came to its image.
pub const START_TYPE: &str = "namespan.process.start_type";
/// double, seconds from fork to exit.
pub const DURATION: &str = "namespan.process.duration";
/// int: thread that caused the event, where it is not the first.
pub const TID: &str = "namespan.process.tid";
/// string: the kernel's name of the thread, at most 15 bytes.
pub const COMM: &str = "namespan.process.comm";
/// string: script that the executable interprets.
pub const SCRIPT_PATH: &str = "namespan.process.script.path";
/// bool: the executable has no name in any directory any more, or never had (a memfd).
pub const EXECUTABLE_UNLINKED: &str = "namespan.process.executable.unlinked";
/// bool: first components of `process.executable.path` are missing.
pub const EXECUTABLE_TRUNCATED: &str = "namespan.process.executable.truncated";
/// bool: the kernel could not read the executable's path.
pub const EXECUTABLE_UNREADABLE: &str = "namespan.process.executable.unreadable";
/// bool: bytes are missing in the middle of `process.command_args`.
pub const ARGS_TRUNCATED: &str = "namespan.process.args.truncated";
/// int, bytes: true size of the arguments, NULs included, where they are truncated.
pub const ARGS_LENGTH: &str = "namespan.process.args.length";
/// bool: an argument was replaced by `REDACTED`, wholly or in part.
pub const ARGS_REDACTED: &str = "namespan.process.args.redacted";
/// bool: the kernel could not read the arguments.
pub const ARGS_UNREADABLE: &str = "namespan.process.args.unreadable";
/// bool: not all of the environment could be searched for a trace context.
pub const ENV_UNREAD: &str = "namespan.process.environment.unread";
/// int: execs in this process and its forefathers.
pub const SELF_EXEC_ID: &str = "namespan.process.self_exec_id";
/// int: `self_exec_id` of the parent at the fork.
pub const PARENT_EXEC_ID: &str = "namespan.process.parent_exec_id";
/// string ISO 8601: names the parent together with `process.parent_pid`.
pub const PARENT_CREATION_TIME: &str = "namespan.process.parent.creation.time";
/// int: effective gid.
pub const GROUP_ID: &str = "namespan.process.group.id";
/// int: sent where it differs from the effective one.
pub const REAL_GROUP_ID: &str = "namespan.process.real_group.id";
/// int: sent where it differs from the effective one.
pub const SAVED_GROUP_ID: &str = "namespan.process.saved_group.id";
/// string: `exited`, `signaled` or `oom_killed`.
pub const EXIT_REASON: &str = "namespan.process.exit.reason";
/// int: the signal that ended the process.
pub const EXIT_SIGNAL_NUMBER: &str = "namespan.process.exit.signal.number";
/// string: its name, `SIGKILL`.
pub const EXIT_SIGNAL_NAME: &str = "namespan.process.exit.signal.name";
/// bool: sent with a signal.
pub const EXIT_CORE_DUMPED: &str = "namespan.process.exit.core_dumped";
/// string: controlling terminal, `pts/0`.
pub const TTY_NAME: &str = "namespan.tty.name";
/// int: cgroup v2 id, the inode number of its directory.
pub const CGROUP_ID: &str = "namespan.cgroup.id";
/// int: the same of a cgroup v1 hierarchy, on hosts that have one.
pub const CGROUP_V1_ID: &str = "namespan.cgroup.v1.id";
/// bool: last components of `process.linux.cgroup` are missing.
pub const CGROUP_TRUNCATED: &str = "namespan.cgroup.truncated";
/// bool: the kernel could not read the cgroup's path whole.
pub const CGROUP_UNREADABLE: &str = "namespan.cgroup.unreadable";
/// string: hostname within the process's UTS namespace.
pub const UTS_NODENAME: &str = "namespan.uts.nodename";
/// int: inode numbers, in the order of `namespan_ebpf::wire::ns`.
pub const NAMESPACE_INODES: [&str; namespan_ebpf::wire::ns::COUNT] = [
    "namespan.namespace.pid.inode",
    "namespan.namespace.net.inode",
    "namespan.namespace.mnt.inode",
    "namespan.namespace.uts.inode",
    "namespan.namespace.ipc.inode",
    "namespan.namespace.user.inode",
    "namespan.namespace.cgroup.inode",
    "namespan.namespace.time.inode",
];

// --- Uprobes ------------------------------------------------------------------------------------------------------------

/// string, stable: as the programmer calls it; `provider:name` of a USDT marker; the offset where there is no name.
pub const CODE_FUNCTION_NAME: &str = "code.function.name";
/// string, Dev: the kernel's name of the thread, at most 15 bytes.
pub const THREAD_NAME: &str = "thread.name";
/// int: the thread, in the host's PID namespace.
pub const THREAD_TID: &str = "namespan.thread.tid";
/// What attributes of uprobes begin with.
pub const UPROBE_PREFIX: &str = "namespan.uprobe.";
/// string: what the settings call the probe.
pub const UPROBE_NAME: &str = "namespan.uprobe.name";
/// string: the file, as the first process that was found to use it sees it.
pub const UPROBE_BINARY_PATH: &str = "namespan.uprobe.binary.path";
/// int, bytes: place of the probe in the file.
pub const UPROBE_OFFSET: &str = "namespan.uprobe.offset";
/// int, double, bool or string, as the probe's type says: an argument, whose name follows. What is above the largest int is a
/// decimal string, a pointer a string `0x7f3a10`, and what is not UTF-8 bytes.
pub const UPROBE_ARGS_PREFIX: &str = "namespan.uprobe.args.";
/// As an argument.
pub const UPROBE_RETURN_VALUE: &str = "namespan.uprobe.return_value";
/// double, seconds from a call to its return.
pub const UPROBE_DURATION: &str = "namespan.uprobe.duration";
/// string[]: values that are left out, as the pointer to them was null: `args.<name>` or `return_value`.
pub const UPROBE_NULL: &str = "namespan.uprobe.null";
/// string[], as `namespan.uprobe.null`: values that are left out, as their memory could not be read.
pub const UPROBE_UNREAD: &str = "namespan.uprobe.unread";
/// string[], as `namespan.uprobe.null`: values of which only the beginning was kept.
pub const UPROBE_TRUNCATED: &str = "namespan.uprobe.truncated";
/// string[], as `namespan.uprobe.null`: values of which something was replaced by `***`.
pub const UPROBE_REDACTED: &str = "namespan.uprobe.redacted";

// --- The guard ----------------------------------------------------------------------------------------------------------

/// string, Dev: the policy that decided.
pub const SECURITY_RULE_NAME: &str = "security_rule.name";
/// string, Dev: its description.
pub const SECURITY_RULE_DESCRIPTION: &str = "security_rule.description";
/// string: `observe`, `kill` or `deny`; what the policy asks for.
pub const ENFORCEMENT_ACTION: &str = "namespan.enforcement.action";
/// string: `observed`, `killed`, `denied`, `failed`, `disarmed` or `lease_expired`; what was done.
pub const ENFORCEMENT_RESULT: &str = "namespan.enforcement.result";
/// string: which of the policy's rules holds: `match[0]`.
pub const ENFORCEMENT_RULE: &str = "namespan.enforcement.rule";
/// string: `observe` or `enforce`; as the settings have it.
pub const ENFORCEMENT_MODE: &str = "namespan.enforcement.mode";
/// string: `sched_process_exec` or `bprm_check_security`; where in the kernel it was decided.
pub const ENFORCEMENT_HOOK: &str = "namespan.enforcement.hook";
/// string[]: all policies that fired, where there were several.
pub const ENFORCEMENT_FIRED: &str = "namespan.enforcement.policies";
/// string: `image`, `changed`, `mounted`, `memfd`, `deleted` or `unknown`; where the executable comes from.
pub const EXECUTABLE_ORIGIN: &str = "namespan.process.executable.origin";
/// string: path of the parent's executable.
pub const PARENT_EXECUTABLE_PATH: &str = "namespan.process.parent.executable.path";
/// string: `observing`, `enforcing`, `ended`, `taken_over`, `disarmed`, `disarmed_full`, `lease_expired`, `containers_full` or
/// `runtimes_silent`.
pub const GUARD_STATUS: &str = "namespan.guard.status";
/// int: policies in force.
pub const GUARD_POLICIES: &str = "namespan.guard.policies";
/// string: by what programs are refused where a policy denies: `lsm`, or `kill` where the kernel takes no LSM programs.
pub const GUARD_DENY: &str = "namespan.guard.deny";
/// int: execs that a guard which was taken over has decided since it began, told of or not.
pub const GUARD_DECIDED: &str = "namespan.guard.decided";

// --- Spans --------------------------------------------------------------------------------------------------------------

/// string: why a span begins a trace though its process has a parent, as `processes::Boundary` has it.
pub const TRACE_BOUNDARY: &str = "namespan.trace.boundary";
/// int: execs seen in the process, where there was more than one.
pub const SPAN_EXECS: &str = "namespan.span.execs";
/// bool: told before the process has ended, as other spans name this one as their parent; the end is not the process's.
pub const SPAN_UNFINISHED: &str = "namespan.span.unfinished";
/// string: `spawned_by`; what a link means.
pub const LINK_TYPE: &str = "namespan.link.type";

// --- Namespan's own metrics ---------------------------------------------------------------------------------------------

/// Scope of our own metrics; its version is the exporter's.
pub const SCOPE_TELEMETRY: &str = "namespan.telemetry";
/// string, Dev: kind of the component a metric is of.
pub const OTEL_COMPONENT_TYPE: &str = "otel.component.type";
/// string, Dev: the type and a number.
pub const OTEL_COMPONENT_NAME: &str = "otel.component.name";
/// string: `exec`, `exit` or `exec_failed`; the program in the kernel.
pub const PROGRAM: &str = "namespan.program";
/// string: what came of it.
pub const OUTCOME: &str = "namespan.outcome";
/// string: `untried`, `delivering`, `failing`, `losing` or `refused`; how a destination does.
pub const STATE: &str = "namespan.state";
/// string, stable: host of an endpoint, or the path of its socket.
pub const SERVER_ADDRESS: &str = "server.address";
/// int, stable.
pub const SERVER_PORT: &str = "server.port";
/// string, Dev: `user` or `system`.
pub const CPU_MODE: &str = "cpu.mode";
