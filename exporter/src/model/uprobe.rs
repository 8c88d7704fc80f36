//! A hit of a uprobe and what is known about it in, the bytes of one OTLP `LogRecord` out, and of a call those of a `Span`.

pub(crate) mod sentence;
#[cfg(test)]
mod tests;
mod value;

pub(crate) use value::Hiding;

use sentence::Sentence;
use value::{Name, Shown};

use crate::config::{Arguments, AttributeLimits};
use crate::enrich::Attribution;
use crate::model::attributes::Attributes;
use crate::model::log::{end, field};
use crate::model::process::{Image, comm, credentials, exec_ids, first_part, image, name, origin, relatives, spaces};
use crate::model::text::{Line, hexadecimal};
use crate::model::uid::Uid;
use crate::model::{args, proto, semconv, span, text};
use crate::redact::Redactor;
use crate::trace::{SpanContext, SpanId, TraceId};
use crate::uprobe::hit::{Hit, Kind, Value};
use crate::uprobe::place::Place;

/// A hit, and what is known about it, but not by the kernel. Times are nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    pub hit: &'a Hit<'a>,
    pub place: &'a Place,
    /// Whose the process is.
    pub attribution: &'a Attribution,
    /// Of the hit; of a call its beginning.
    pub time_unix_ns: u64,
    /// When the record was read from the ring.
    pub observed_unix_ns: u64,
    /// Of the process's fork, truncated to 10 ms.
    pub creation_unix_ns: u64,
    /// Of the parent's fork, truncated to 10 ms; 0: unknown.
    pub parent_creation_unix_ns: u64,
    /// What the process runs, if its exec was seen.
    pub image: Option<&'a Image>,
    /// Of the log record.
    pub uid: Option<Uid>,
    /// The span that the log record belongs to.
    pub span: Option<SpanId>,
    /// That span's trace, and its flags; `None`: not known.
    pub trace: Option<(TraceId, u8)>,
}

impl Told<'_> {
    /// When the record's event was: of a call the return. By the clock that is never set, from its beginning on.
    #[must_use]
    pub fn ended_unix_ns(&self) -> u64 {
        self.time_unix_ns.saturating_add(self.duration_ns().unwrap_or_default())
    }

    fn duration_ns(&self) -> Option<u64> {
        match self.hit.kind {
            Kind::Call { duration_ns } => Some(duration_ns),
            Kind::Entry | Kind::Return => None,
        }
    }
}

/// Writes records and spans; keeps its buffers.
#[derive(Debug)]
pub struct Encoder {
    arguments: Arguments,
    limits: AttributeLimits,
    redactor: Redactor,
    hiding: Hiding,
    line: Line,
    args: args::Encoded,
    values: Values,
    scratch: Vec<u8>,
}

impl Encoder {
    /// `arguments`: how the process's own command leaves the host, as in other records.
    #[must_use]
    pub fn new(arguments: Arguments, limits: AttributeLimits) -> Self {
        Self {
            arguments,
            limits,
            redactor: Redactor::new(),
            hiding: Hiding::default(),
            line: Line::default(),
            args: args::Encoded::default(),
            values: Values::default(),
            scratch: Vec::new(),
        }
    }

    /// From now on arguments of processes leave the host like this.
    pub fn arguments(&mut self, arguments: Arguments) {
        self.arguments = arguments;
    }

    /// Appends the fields of one `LogRecord`, without tag and length of the record itself.
    pub fn encode(&mut self, told: &Told<'_>, out: &mut Vec<u8>) {
        self.prepare(told, field::ATTRIBUTES);
        let name = match told.hit.kind {
            Kind::Entry => semconv::EVENT_UPROBE_HIT,
            Kind::Return | Kind::Call { .. } => semconv::EVENT_UPROBE_RETURN,
        };
        proto::fixed64_field(out, field::TIME, told.ended_unix_ns());
        proto::varint_field(out, field::SEVERITY, told.place.probe.severity.into());
        proto::any_field(out, field::BODY, proto::Value::Text(self.line.as_bytes()));
        let dropped = self.attributes(told, (field::ATTRIBUTES, told.uid), out);
        end(out, dropped, (told.trace, told.span), told.observed_unix_ns, name);
    }

    /// Appends the fields of one `Span`, without tag and length of the span itself: the call as it was, below its process's
    /// span. A hit that is no call has a span without length.
    pub fn encode_span(&mut self, told: &Told<'_>, own: SpanContext, parent: Option<SpanId>, out: &mut Vec<u8>) {
        use span::field;
        self.prepare(told, field::ATTRIBUTES);
        self.line.clear();
        self.line.push(told.place.function.as_bytes());
        proto::len_field(out, field::TRACE_ID, &own.trace_id.0);
        proto::len_field(out, field::SPAN_ID, &own.span_id.0);
        if let Some(parent) = parent {
            proto::len_field(out, field::PARENT_SPAN_ID, &parent.0);
        }
        proto::len_field(out, field::NAME, self.line.as_bytes());
        proto::varint_field(out, field::KIND, span::KIND_INTERNAL);
        proto::fixed64_field(out, field::START, told.time_unix_ns);
        proto::fixed64_field(out, field::END, told.ended_unix_ns());
        let dropped = self.attributes(told, (field::ATTRIBUTES, None), out);
        if dropped > 0 {
            proto::varint_field(out, field::DROPPED_ATTRIBUTES, dropped.into());
        }
        proto::fixed32_field(out, field::FLAGS, u32::from(own.flags) | span::HAS_IS_REMOTE);
    }

    /// Fills `line`, `args` and `values`: one pass over the values serves both.
    fn prepare(&mut self, told: &Told<'_>, field: u32) {
        self.args.clear();
        if let Some(image) = told.image {
            self.args.command(&image.command, self.arguments, &mut self.redactor);
        }
        self.values.clear();
        self.line.clear();
        let mut sentence = Sentence::of(&mut self.line, &told.place.function);
        self.hiding.each(told.hit, told.place, |shown| {
            sentence.value(shown);
            self.values.add(shown, field, self.limits, &mut self.scratch);
        });
        sentence.end(told.hit.kind);
    }

    /// Those of the hit itself first, as a limit on their number cuts the last ones. Returns how many it has cut.
    fn attributes(&mut self, told: &Told<'_>, (field, uid): (u32, Option<Uid>), out: &mut Vec<u8>) -> u32 {
        let Told { hit, place, .. } = told;
        let process = &hit.process;
        let mut attributes = Attributes::new(out, field, self.limits, &mut self.scratch);
        name(&mut attributes, process, told.creation_unix_ns);
        if let Some(uid) = uid {
            attributes.id(semconv::LOG_RECORD_UID, uid.as_bytes());
        }
        attributes.text(semconv::CODE_FUNCTION_NAME, place.function.as_bytes());
        attributes.text(semconv::UPROBE_NAME, place.probe.name.as_bytes());
        self.values.write(&mut attributes);
        if let Some(duration_ns) = told.duration_ns() {
            let duration = std::time::Duration::from_nanos(duration_ns);
            attributes.double(semconv::UPROBE_DURATION, duration.as_secs_f64());
        }
        attributes.int(semconv::THREAD_TID, process.tid);
        attributes.text(semconv::THREAD_NAME, first_part(&hit.comm));
        attributes.text(semconv::UPROBE_BINARY_PATH, place.binary.as_bytes());
        attributes.int(semconv::UPROBE_OFFSET, i64::try_from(place.offset).unwrap_or(i64::MAX));
        if let Some(runs) = told.image {
            image(&mut attributes, runs, &self.args);
        }
        origin(&mut attributes, process, told.attribution);
        credentials(&mut attributes, process);
        spaces(&mut attributes, process);
        relatives(&mut attributes, process, told.parent_creation_unix_ns);
        attributes.text(semconv::COMM, comm(process));
        exec_ids(&mut attributes, process);
        attributes.dropped()
    }
}

/// The captured values of one hit as attributes, and the names of those that are not whole.
#[derive(Debug, Default)]
struct Values {
    /// Fields of the message that they are attributes of.
    fields: Vec<u8>,
    key: String,
    null: Vec<u8>,
    unread: Vec<u8>,
    truncated: Vec<u8>,
    redacted: Vec<u8>,
}

impl Values {
    fn clear(&mut self) {
        for bytes in [&mut self.fields, &mut self.null, &mut self.unread, &mut self.truncated, &mut self.redacted] {
            bytes.clear();
        }
    }

    fn add(&mut self, shown: &Shown<'_>, field: u32, limits: AttributeLimits, scratch: &mut Vec<u8>) {
        self.key.clear();
        match shown.name {
            Name::Arg(name) => {
                self.key.push_str(semconv::UPROBE_ARGS_PREFIX);
                self.key.push_str(name);
            }
            Name::Returned => self.key.push_str(semconv::UPROBE_RETURN_VALUE),
        }
        let key = self.key.as_str();
        let name = key.strip_prefix(semconv::UPROBE_PREFIX).unwrap_or(key);
        let note = |names: &mut Vec<u8>| proto::element(names, proto::Value::Text(name.as_bytes()));
        // The limit on their number is that of the whole record.
        let limits = AttributeLimits { count: usize::MAX, ..limits };
        let mut attributes = Attributes::new(&mut self.fields, field, limits, scratch);
        match shown.value {
            Value::Int(value) => attributes.int(key, value),
            Value::Uint(value) => match i64::try_from(value) {
                Ok(value) => attributes.int(key, value),
                Err(_) => attributes.composed(key, |out| text::decimal(out, value)),
            },
            Value::Bool(value) => attributes.bool(key, value),
            Value::Pointer(address) => attributes.composed(key, |out| hexadecimal(out, address)),
            Value::Bytes(bytes) | Value::Str(bytes) => attributes.present(key, Some(bytes)),
            Value::F64(value) => attributes.double(key, value),
            Value::Null => note(&mut self.null),
            Value::Fault { .. } => note(&mut self.unread),
        }
        if shown.truncated {
            note(&mut self.truncated);
        }
        if shown.redacted {
            note(&mut self.redacted);
        }
    }

    fn write(&self, attributes: &mut Attributes<'_>) {
        attributes.written(&self.fields);
        for (key, names) in [
            (semconv::UPROBE_NULL, &self.null),
            (semconv::UPROBE_UNREAD, &self.unread),
            (semconv::UPROBE_TRUNCATED, &self.truncated),
            (semconv::UPROBE_REDACTED, &self.redacted),
        ] {
            if !names.is_empty() {
                attributes.array(key, names);
            }
        }
    }
}
