//! A process's life in, the bytes of one OTLP `Span` out: what an exec says of it is written at the exec, the rest at the end.
//!
//! By the semantic conventions' CLI spans: named like the executable, of kind `INTERNAL`, an error unless the exit code is 0.

#[cfg(test)]
mod tests;

use crate::config::{self, Arguments, AttributeLimits};
use crate::event::{Args, Event, Exec, Exit};
use crate::model::attributes::Attributes;
use crate::model::process::{
    Context, comm, exec_attributes, exit_error, exit_reason, first_filled, identity, provenance,
};
use crate::model::text::{Line, base_name};
use crate::model::{args, names, proto, semconv, text};
use crate::processes::{Begun, Span};
use crate::redact::Redactor;

/// Fields of `Span`, in the order in which they are written.
pub(super) mod field {
    pub const TRACE_ID: u32 = 1;
    pub const SPAN_ID: u32 = 2;
    pub const TRACE_STATE: u32 = 3;
    pub const PARENT_SPAN_ID: u32 = 4;
    pub const NAME: u32 = 5;
    pub const KIND: u32 = 6;
    pub const START: u32 = 7;
    pub const END: u32 = 8;
    pub const ATTRIBUTES: u32 = 9;
    pub const DROPPED_ATTRIBUTES: u32 = 10;
    pub const LINKS: u32 = 13;
    pub const STATUS: u32 = 15;
    pub const FLAGS: u32 = 16;
}

/// Fields of `Span.Link`.
mod link {
    pub const TRACE_ID: u32 = 1;
    pub const SPAN_ID: u32 = 2;
    pub const ATTRIBUTES: u32 = 4;
    pub const FLAGS: u32 = 6;
}

/// Fields of `Status`.
mod status {
    pub const MESSAGE: u32 = 2;
    pub const CODE: u32 = 3;
}

pub(super) const KIND_INTERNAL: u64 = 1;
const STATUS_ERROR: u64 = 2;
/// Bits of `flags` besides the trace's own.
pub(super) const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// Arguments of a span at most: back-ends take less of a span than of a log record, which has them all.
const ARGUMENTS: args::Limits = args::Limits { value_length: None, elements: 64, bytes: 4096 };

/// Programs of many names: which one runs decides what it does.
const MULTI_CALL: [&[u8]; 3] = [b"busybox", b"toybox", b"coreutils"];
/// Longest name of an applet: the workload writes it.
const APPLET_MAX: usize = 32;

/// How a span ends, and when by the boot clock.
#[derive(Clone, Copy, Debug)]
pub enum End<'a> {
    /// With its process.
    Exit { exit: &'a Exit, end_boot_ns: u64 },
    /// Before it.
    Unfinished { end_boot_ns: u64 },
}

/// Writes spans; keeps its buffers.
#[derive(Debug)]
pub struct Encoder {
    arguments: Arguments,
    limits: AttributeLimits,
    ok_exit_codes: Vec<(String, Vec<u8>)>,
    redactor: Redactor,
    args: args::Encoded,
    line: Line,
    scratch: Vec<u8>,
    link: Vec<u8>,
    attributes: Vec<u8>,
}

impl Encoder {
    #[must_use]
    pub fn new(arguments: Arguments, limits: AttributeLimits, settings: &config::Spans) -> Self {
        Self {
            arguments,
            limits,
            ok_exit_codes: settings.ok_exit_codes.clone(),
            redactor: Redactor::new(),
            args: args::Encoded::default(),
            line: Line::default(),
            scratch: Vec::new(),
            link: Vec::new(),
            attributes: Vec::new(),
        }
    }

    /// From now on arguments leave the host like this.
    pub fn arguments(&mut self, arguments: Arguments) {
        self.arguments = arguments;
    }

    /// What an exec says of its process's span.
    pub fn begin(&mut self, event: &Event<'_>, exec: &Exec<'_>, context: &Context<'_>) -> Begun {
        let limits = args::Limits { value_length: self.limits.value_length, ..ARGUMENTS };
        self.args.clear();
        self.line.clear();
        self.args.fill(exec.args, self.arguments, limits, &mut self.redactor, &mut self.line);
        self.attributes.clear();
        let unlimited = AttributeLimits { count: usize::MAX, ..self.limits };
        let mut attributes = Attributes::new(&mut self.attributes, field::ATTRIBUTES, unlimited, &mut self.scratch);
        identity(&mut attributes, event, context);
        exec_attributes(&mut attributes, event, exec, &self.args, self.arguments);
        provenance(&mut attributes, event, context);
        let process = &event.process;
        attributes.int_unless(semconv::PROCESS_REAL_USER_ID, process.uid, process.euid);
        attributes.text(semconv::COMM, comm(process));
        attributes.int_unless(semconv::PROCESS_SESSION_LEADER_PID, process.session_leader, 0);
        attributes.text(semconv::UTS_NODENAME, event.nodename);
        attributes.int(semconv::NAMESPACE_INODES[namespan_ebpf::wire::ns::PID], process.namespaces[0]);
        let name = name(&mut self.line, event, exec);
        Begun { name, attributes: self.attributes.as_slice().into() }
    }

    /// Appends the fields of one `Span`, without tag and length of the span itself.
    pub fn encode(&mut self, span: &Span, end: End<'_>, out: &mut Vec<u8>) {
        let context = span.context;
        proto::len_field(out, field::TRACE_ID, &context.trace_id.0);
        proto::len_field(out, field::SPAN_ID, &context.span_id.0);
        if !span.state.is_empty() {
            proto::len_field(out, field::TRACE_STATE, span.state.as_bytes());
        }
        if let Some(parent) = span.parent {
            proto::len_field(out, field::PARENT_SPAN_ID, &parent.span_id.0);
        }
        proto::len_field(out, field::NAME, span.begun.name.as_bytes());
        proto::varint_field(out, field::KIND, KIND_INTERNAL);
        let (End::Exit { end_boot_ns, .. } | End::Unfinished { end_boot_ns }) = end;
        proto::fixed64_field(out, field::START, span.start_unix_ns);
        // By the clock that is never set: a step of the wall clock in between is no part of the process's life.
        let lasted_ns = end_boot_ns.saturating_sub(span.start_boot_ns);
        proto::fixed64_field(out, field::END, span.start_unix_ns.saturating_add(lasted_ns));
        let is_error = match end {
            End::Exit { exit, .. } => self.is_error(span, *exit),
            End::Unfinished { .. } => false,
        };
        self.attributes(span, end, is_error, out);
        self.link(span, out);
        if is_error {
            self.status(end, out);
        }
        let remote = span.parent.is_some_and(|parent| parent.remote);
        let flags = u32::from(context.flags) | HAS_IS_REMOTE | if remote { IS_REMOTE } else { 0 };
        proto::fixed32_field(out, field::FLAGS, flags);
    }

    /// Those of the end first, as a limit on their number cuts the last ones.
    fn attributes(&mut self, span: &Span, end: End<'_>, is_error: bool, out: &mut Vec<u8>) {
        let mut attributes = Attributes::new(out, field::ATTRIBUTES, self.limits, &mut self.scratch);
        match end {
            End::Exit { exit, .. } => {
                attributes.int(semconv::PROCESS_EXIT_CODE, exit.status.code());
                if is_error {
                    exit_error(&mut attributes, *exit);
                }
                exit_reason(&mut attributes, *exit);
            }
            End::Unfinished { .. } => attributes.bool(semconv::SPAN_UNFINISHED, true),
        }
        if let Some(boundary) = span.boundary {
            attributes.text(semconv::TRACE_BOUNDARY, boundary.as_str().as_bytes());
        }
        if span.execs > 1 {
            attributes.int(semconv::SPAN_EXECS, span.execs);
        }
        attributes.written(&span.begun.attributes);
        let dropped = attributes.dropped();
        if dropped > 0 {
            proto::varint_field(out, field::DROPPED_ATTRIBUTES, dropped.into());
        }
    }

    fn link(&mut self, span: &Span, out: &mut Vec<u8>) {
        let Some(link) = span.link else { return };
        self.link.clear();
        proto::len_field(&mut self.link, link::TRACE_ID, &link.to.trace_id.0);
        proto::len_field(&mut self.link, link::SPAN_ID, &link.to.span_id.0);
        let spawned_by = proto::Value::Text(b"spawned_by");
        proto::key_value(&mut self.link, link::ATTRIBUTES, semconv::LINK_TYPE, spawned_by);
        proto::fixed32_field(&mut self.link, link::FLAGS, u32::from(link.to.flags) | HAS_IS_REMOTE);
        proto::len_field(out, field::LINKS, &self.link);
    }

    fn status(&mut self, end: End<'_>, out: &mut Vec<u8>) {
        self.scratch.clear();
        if let End::Exit { exit, .. } = end
            && let Some(signal) = exit.status.signal()
        {
            let mut message = b"killed by ".to_vec();
            if let Some(name) = names::signal(signal) {
                message.extend_from_slice(name.as_bytes());
            } else {
                message.extend_from_slice(b"signal ");
                text::decimal(&mut message, signal.into());
            }
            proto::len_field(&mut self.scratch, status::MESSAGE, &message);
        }
        proto::varint_field(&mut self.scratch, status::CODE, STATUS_ERROR);
        proto::len_field(out, field::STATUS, &self.scratch);
    }

    fn is_error(&self, span: &Span, exit: Exit) -> bool {
        let code = exit.status.code();
        if code == 0 {
            return false;
        }
        let name = span.begun.name.as_bytes();
        let applet = |executable: &&[u8]| name.strip_prefix(*executable)?.strip_prefix(b" ");
        let program = MULTI_CALL.iter().find_map(applet).unwrap_or(name);
        let is_ok = |codes: &[u8]| u8::try_from(code).is_ok_and(|code| codes.contains(&code));
        !self.ok_exit_codes.iter().any(|(pattern, codes)| config::matches(pattern, program) && is_ok(codes))
    }
}

/// Of the executable, and of the applet of a program of many names.
fn name(line: &mut Line, event: &Event<'_>, exec: &Exec<'_>) -> String {
    let executable = first_filled([base_name(exec.path), comm(&event.process), b"?"]);
    line.clear();
    line.push(executable);
    if MULTI_CALL.contains(&executable)
        && let Some(applet) = applet(executable, exec.args)
    {
        line.push(b" ");
        line.push(applet);
    }
    line.as_str().to_owned()
}

/// Its own name where it was called by it, or else its first argument. Only what looks like a name: anything else would make
/// a name of its own of each span.
fn applet<'a>(executable: &[u8], args: Args<'a>) -> Option<&'a [u8]> {
    let mut args = args.iter();
    let called = base_name(args.next()?);
    let called = called.strip_prefix(b"-").unwrap_or(called);
    let applet = if called == executable { args.next()? } else { called };
    let is_name = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-[.".contains(byte);
    (!applet.is_empty() && applet.len() <= APPLET_MAX && !applet.starts_with(b"-") && applet.iter().all(is_name))
        .then_some(applet)
}
