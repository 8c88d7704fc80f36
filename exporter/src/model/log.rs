//! An event and what is known about it in, the bytes of one OTLP `LogRecord` out.

#[cfg(test)]
mod tests;

use crate::config::{Arguments, AttributeLimits};
use crate::event::{Event, ExecFailed, Exit, Kind};
use crate::model::attributes::Attributes;
use crate::model::process::{
    comm, credentials, exec_attributes, executable, exit_attributes, first_filled, identity, lineage, provenance,
    surroundings,
};
use crate::model::text::base_name;
use crate::model::{args, names, proto, semconv, text};
use crate::redact::Redactor;
use crate::trace::{SpanId, TraceId};

pub use crate::model::process::{Context, Image};

const INFO: u8 = 9;
const WARN: u8 = 13;
const ERROR: u8 = 17;

/// Fields of `LogRecord`, in the order in which they are written.
pub(super) mod field {
    pub const TIME: u32 = 1;
    pub const SEVERITY: u32 = 2;
    pub const BODY: u32 = 5;
    pub const ATTRIBUTES: u32 = 6;
    pub const DROPPED_ATTRIBUTES: u32 = 7;
    pub const FLAGS: u32 = 8;
    pub const TRACE_ID: u32 = 9;
    pub const SPAN_ID: u32 = 10;
    pub const OBSERVED_TIME: u32 = 11;
    pub const EVENT_NAME: u32 = 12;
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

    /// From now on arguments leave the host like this.
    pub fn arguments(&mut self, arguments: Arguments) {
        self.arguments = arguments;
    }

    /// Appends the fields of one `LogRecord`, without tag and length of the record itself.
    pub fn encode(&mut self, event: &Event<'_>, context: &Context<'_>, out: &mut Vec<u8>) {
        self.prepare(event, context);
        let (name, severity) = match &event.kind {
            Kind::Exec(_) => (semconv::EVENT_EXEC, INFO),
            Kind::ExecFailed(_) => (semconv::EVENT_EXEC, WARN),
            Kind::Exit(exit) => (semconv::EVENT_EXIT, exit_severity(*exit)),
        };
        proto::fixed64_field(out, field::TIME, context.time_unix_ns);
        proto::varint_field(out, field::SEVERITY, u64::from(severity));
        proto::any_field(out, field::BODY, proto::Value::Text(self.body.as_bytes()));
        let mut attributes = Attributes::new(out, field::ATTRIBUTES, self.limits, &mut self.scratch);
        identity(&mut attributes, event, context);
        if let Some(uid) = &context.uid {
            attributes.id(semconv::LOG_RECORD_UID, uid.as_bytes());
        }
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
        end(out, dropped, (context.trace, context.span), context.observed_unix_ns, name);
    }

    /// Fills `body` and `args`: one pass over the arguments serves both.
    fn prepare(&mut self, event: &Event<'_>, context: &Context<'_>) {
        self.body.clear();
        self.args.clear();
        match &event.kind {
            Kind::Exec(exec) => {
                self.body.push(b"exec ");
                self.body.push(first_filled([exec.path, comm(&event.process), b"?"]));
                let limits = args::Limits { value_length: self.limits.value_length, ..args::Limits::NONE };
                self.args.fill(exec.args, self.arguments, limits, &mut self.redactor, &mut self.body);
            }
            Kind::Exit(exit) => {
                let image = context.image;
                if let Some(image) = image {
                    self.args.command(&image.command, self.arguments, &mut self.redactor);
                }
                let name = image.map_or(&b""[..], |image| base_name(&image.path));
                self.body.push(b"exit ");
                self.body.push(first_filled([name, comm(&event.process), b"?"]));
                self.push_status(*exit);
            }
            Kind::ExecFailed(failed) => {
                self.body.push(b"exec failed ");
                self.body.push(failed.path);
                self.body.push(b": ");
                self.push_errno(failed);
            }
        }
    }

    fn push_status(&mut self, exit: Exit) {
        let status = exit.status;
        let (word, number, name) = match status.signal() {
            Some(signal) => (&b" signal "[..], signal, names::signal(signal)),
            None => (&b" code "[..], status.code(), None),
        };
        self.body.push(word);
        self.push_named(name, number);
        if status.core_dumped() {
            self.body.push(b" (core dumped)");
        }
        if exit.oom_killed() {
            self.body.push(b" (out of memory)");
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

/// Appends what follows the attributes of a record.
pub(super) fn end(
    out: &mut Vec<u8>,
    dropped: u32,
    (trace, span): (Option<(TraceId, u8)>, Option<SpanId>),
    observed_unix_ns: u64,
    name: &str,
) {
    if dropped > 0 {
        proto::varint_field(out, field::DROPPED_ATTRIBUTES, u64::from(dropped));
    }
    if let Some((trace_id, flags)) = trace {
        if flags != 0 {
            proto::fixed32_field(out, field::FLAGS, flags.into());
        }
        proto::len_field(out, field::TRACE_ID, &trace_id.0);
    }
    if let Some(span_id) = span {
        proto::len_field(out, field::SPAN_ID, &span_id.0);
    }
    proto::fixed64_field(out, field::OBSERVED_TIME, observed_unix_ns);
    proto::len_field(out, field::EVENT_NAME, name.as_bytes());
}

/// What asks a program to end is no problem; what a bug in it or a lack of memory causes is an error; the rest is odd.
fn exit_severity(exit: Exit) -> u8 {
    match exit.status.signal().map(|signal| names::signal(signal).unwrap_or_default()) {
        Some("SIGTERM" | "SIGINT" | "SIGHUP" | "SIGPIPE") => INFO,
        Some("SIGSEGV" | "SIGABRT" | "SIGBUS" | "SIGILL" | "SIGFPE") => ERROR,
        Some(_) if exit.oom_killed() => ERROR,
        None if exit.status.code() == 0 => INFO,
        Some(_) | None => WARN,
    }
}
