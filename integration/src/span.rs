//! Spans as a collector takes them, and what holds for all of Namespan's.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{self, SpanFlags};

use crate::attribute::{Attributes, Value, attributes};
use crate::sink::{Record, Resource, Scope};

/// The trace flag of the W3C.
pub const SAMPLED: u32 = 0x01;
/// Flags of a trace that begins here: sampled, and its id is random.
pub const BEGUN: u32 = 0x03;
const TRACE_FLAGS: u32 = SpanFlags::TraceFlagsMask as u32;
const HAS_IS_REMOTE: u32 = SpanFlags::ContextHasIsRemoteMask as u32;
const IS_REMOTE: u32 = SpanFlags::ContextIsRemoteMask as u32;

/// One span, with what stood around it. Ids are hexadecimal digits.
#[derive(Clone, Debug)]
pub struct Span {
    /// Shared by the spans of one `ResourceSpans`.
    pub resource: Arc<Resource>,
    pub scope: Scope,
    pub trace_id: String,
    pub span_id: String,
    /// Empty: a root.
    pub parent_span_id: String,
    pub trace_state: String,
    pub flags: u32,
    pub name: String,
    pub kind: i32,
    pub start_ns: u64,
    pub end_ns: u64,
    pub attributes: Attributes,
    pub dropped_attributes: u32,
    pub links: Vec<Link>,
    pub status: Status,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    pub trace_id: String,
    pub span_id: String,
    pub attributes: Attributes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Unset,
    Ok,
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub code: Code,
    pub message: String,
}

/// All spans of a request, in order; of each `ResourceSpans` one resource.
#[must_use]
pub fn spans(request: ExportTraceServiceRequest) -> Vec<Span> {
    let mut spans = Vec::new();
    for of_resource in request.resource_spans {
        let resource = Resource::new(of_resource.resource, of_resource.schema_url);
        for of_scope in of_resource.scope_spans {
            let scope = Scope::new(of_scope.scope, of_scope.schema_url);
            spans.extend(of_scope.spans.into_iter().map(|span| Span::new(span, resource.clone(), scope.clone())));
        }
    }
    spans
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

impl Span {
    fn new(span: v1::Span, resource: Arc<Resource>, scope: Scope) -> Self {
        let status = span.status.unwrap_or_default();
        let code = match status.code {
            0 => Code::Unset,
            1 => Code::Ok,
            2 => Code::Error,
            other => panic!("status {other}"),
        };
        let link = |link: v1::span::Link| Link {
            trace_id: hex(&link.trace_id),
            span_id: hex(&link.span_id),
            attributes: attributes(link.attributes),
        };
        Self {
            resource,
            scope,
            trace_id: hex(&span.trace_id),
            span_id: hex(&span.span_id),
            parent_span_id: hex(&span.parent_span_id),
            trace_state: span.trace_state,
            flags: span.flags,
            name: span.name,
            kind: span.kind,
            start_ns: span.start_time_unix_nano,
            end_ns: span.end_time_unix_nano,
            attributes: attributes(span.attributes),
            dropped_attributes: span.dropped_attributes_count,
            links: span.links.into_iter().map(link).collect(),
            status: Status { code, message: status.message },
        }
    }

    /// `Value::Empty` where there is none.
    #[must_use]
    pub fn get(&self, key: &str) -> &Value {
        self.attributes.get(key).unwrap_or(&Value::Empty)
    }

    #[must_use]
    pub fn of_resource(&self, key: &str) -> &Value {
        self.resource.attributes.get(key).unwrap_or(&Value::Empty)
    }

    #[must_use]
    pub fn pid(&self) -> i64 {
        self.get("process.pid").int()
    }

    #[must_use]
    pub fn trace_flags(&self) -> u32 {
        self.flags & TRACE_FLAGS
    }

    /// Whether its parent is another sender's to tell of.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        assert_ne!(self.flags & HAS_IS_REMOTE, 0, "{self:#?}");
        self.flags & IS_REMOTE != 0
    }

    /// Whether it was told before its process had ended.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        *self.get("namespan.span.unfinished") == true.into()
    }

    pub fn assert_child_of(&self, parent: &Self) {
        assert_eq!(self.parent_span_id, parent.span_id, "{self:#?}\nis no child of {parent:#?}");
        assert_eq!((&self.trace_id, self.trace_flags()), (&parent.trace_id, parent.trace_flags()), "{self:#?}");
        assert!(!self.is_remote() && self.links.is_empty(), "{self:#?}");
        assert_eq!(*self.get("namespan.trace.boundary"), Value::Empty, "{self:#?}");
    }

    /// It begins a trace, for this reason.
    pub fn assert_root(&self, boundary: &str) {
        assert_eq!(self.parent_span_id, "", "{self:#?}");
        assert_eq!((self.trace_flags(), self.is_remote()), (BEGUN, false), "{self:#?}");
        assert_eq!(*self.get("namespan.trace.boundary"), boundary.into(), "{self:#?}");
    }

    /// It begins a trace, for this reason, and says below whom it was started.
    pub fn assert_spawned_by(&self, spawner: &Self, boundary: &str) {
        self.assert_root(boundary);
        assert_ne!(self.trace_id, spawner.trace_id);
        let link = Link {
            trace_id: spawner.trace_id.clone(),
            span_id: spawner.span_id.clone(),
            attributes: [("namespan.link.type".to_owned(), "spawned_by".into())].into(),
        };
        assert_eq!(self.links, [link], "{self:#?}");
    }

    /// Its parent came in the environment, in a context of these flags.
    pub fn assert_remote(&self, trace_id: &str, parent_span_id: &str, trace_flags: u32) {
        let parent = (self.trace_id.as_str(), self.parent_span_id.as_str());
        assert_eq!(parent, (trace_id, parent_span_id), "{self:#?}");
        assert_eq!((self.trace_flags(), self.is_remote()), (trace_flags, true), "{self:#?}");
        assert_eq!(*self.get("namespan.trace.boundary"), Value::Empty, "{self:#?}");
    }

    /// Its process has ended by itself with this code, which is an error of this type or none.
    pub fn assert_exited(&self, code: i64, error: Option<&str>) {
        self.assert_ended(code, error, "exited", &[""]);
    }

    /// Its process was killed.
    pub fn assert_killed(&self, signal: i64, name: &str) {
        self.assert_ended(128 + signal, Some(name), "signaled", &["", &format!("killed by {name}")]);
        assert_eq!(*self.get("namespan.process.exit.signal.number"), signal.into(), "{self:#?}");
        assert_eq!(*self.get("namespan.process.exit.signal.name"), name.into(), "{self:#?}");
    }

    /// It is told of because others name it as their parent; how its process ends is not known.
    pub fn assert_unfinished(&self) {
        assert!(self.is_unfinished(), "{self:#?}");
        for key in ["process.exit.code", "error.type", "namespan.process.exit.reason"] {
            assert_eq!(*self.get(key), Value::Empty, "{key} of {self:#?}");
        }
        assert_eq!(self.status.code, Code::Unset, "{self:#?}");
    }

    pub fn assert_ended(&self, code: i64, error: Option<&str>, reason: &str, messages: &[&str]) {
        let status = if error.is_some() { Code::Error } else { Code::Unset };
        assert_eq!(*self.get("process.exit.code"), code.into(), "{self:#?}");
        assert_eq!(*self.get("error.type"), error.map_or(Value::Empty, Value::from), "{self:#?}");
        assert_eq!(*self.get("namespan.process.exit.reason"), reason.into(), "{self:#?}");
        assert_eq!(self.status.code, status, "{self:#?}");
        assert!(messages.contains(&self.status.message.as_str()), "{self:#?}");
        assert!(!self.is_unfinished(), "{self:#?}");
    }
}

/// The only span of a pid.
#[must_use]
pub fn span_of(spans: &[Span], pid: i64) -> &Span {
    let mut found = spans.iter().filter(|span| span.pid() == pid);
    let span = found.next().unwrap_or_else(|| panic!("no span of {pid} among {}", spans.len()));
    assert!(found.next().is_none(), "two spans of {pid}");
    span
}

/// Spans of a process's children, the first first, in whatever trace.
#[must_use]
pub fn started_by(spans: &[Span], parent_pid: i64) -> Vec<&Span> {
    let is_child = |span: &&Span| *span.get("process.parent_pid") == parent_pid.into();
    let mut children: Vec<_> = spans.iter().filter(is_child).collect();
    children.sort_by_key(|span| span.start_ns);
    children
}

#[must_use]
pub fn only_child(spans: &[Span], parent_pid: i64) -> &Span {
    let children = started_by(spans, parent_pid);
    let [child] = children[..] else { panic!("{parent_pid} has not one child: {children:#?}") };
    child
}

#[must_use]
pub fn names<'a>(spans: &[&'a Span]) -> Vec<&'a str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

/// How a span of this program is named: as the file that is run, and what of it if it is many programs in one.
#[must_use]
pub fn name_of(program: &str) -> String {
    let base = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let file = base(&std::fs::canonicalize(program).unwrap());
    if ["busybox", "toybox", "coreutils"].contains(&file.as_str()) {
        format!("{file} {}", base(Path::new(program)))
    } else {
        file
    }
}

/// What holds for all that a run without filters and loss has told of: records and spans of a process say the same, and
/// each parent that is ours to tell of is told of.
pub fn assert_consistent(records: &[Record], spans: &[Span]) {
    let by_id: HashMap<_, _> = spans.iter().map(|span| (span.span_id.as_str(), span)).collect();
    assert_eq!(by_id.len(), spans.len(), "a span is told twice");
    let mut processes: HashMap<(&str, i64), Told<'_>> = HashMap::new();
    for record in records {
        let failed = record.is_exec() && *record.get("error.type") != Value::Empty;
        if record.is_exec() && !failed {
            assert!(is_id(&record.trace_id, 32) && is_id(&record.span_id, 16), "{record:#?}");
        }
        if let Some(span) = by_id.get(record.span_id.as_str()) {
            assert_eq!((&record.trace_id, record.flags), (&span.trace_id, span.trace_flags()), "{record:#?}");
        }
        if !failed && !record.span_id.is_empty() {
            let told = processes.entry((&record.span_id, record.get("process.pid").int())).or_default();
            if record.is_exec() { told.execs.push(record) } else { told.exits.push(record) }
        }
    }
    for span in spans {
        assert_well_formed(span);
        if !span.parent_span_id.is_empty() && !span.is_remote() {
            let parent = by_id.get(span.parent_span_id.as_str());
            let parent = parent.unwrap_or_else(|| panic!("the parent is told of nowhere: {span:#?}"));
            assert_eq!(span.trace_id, parent.trace_id, "{span:#?}");
            assert!(parent.start_ns <= span.start_ns, "{span:#?}\nbegins before {parent:#?}");
        }
        let told = processes.get(&(span.span_id.as_str(), span.pid()));
        told.unwrap_or_else(|| panic!("no record of {span:#?}")).assert_tell(span);
    }
}

/// Whoever is told to have executed something and to have ended has a span; not so in a run that gives long ones up.
pub fn assert_complete(records: &[Record], spans: &[Span]) {
    let known: HashSet<_> = spans.iter().map(|span| span.span_id.as_str()).collect();
    let execs = records.iter().filter(|record| record.is_exec() && record.flags & SAMPLED != 0);
    let begun: HashSet<_> = execs.map(|exec| (exec.span_id.as_str(), exec.get("process.pid").int())).collect();
    for exit in records.iter().filter(|record| record.is_exit()) {
        let id = exit.span_id.as_str();
        let expected = begun.contains(&(id, exit.get("process.pid").int()));
        assert!(!expected || known.contains(id), "no span for {exit:#?}");
    }
}

/// The records of one process that has a span.
#[derive(Debug, Default)]
struct Told<'a> {
    execs: Vec<&'a Record>,
    exits: Vec<&'a Record>,
}

impl Told<'_> {
    fn assert_tell(&self, span: &Span) {
        let first = self.execs.iter().map(|exec| exec.time_ns).min();
        assert_eq!(first, Some(span.start_ns), "{span:#?}\nbegins with its first exec: {self:#?}");
        if !span.is_unfinished() {
            let [exit] = self.exits[..] else { panic!("{span:#?}\nhas one exit: {self:#?}") };
            assert_eq!(exit.time_ns, span.end_ns, "{span:#?}\nends with {exit:#?}");
            assert_eq!(exit.get("process.exit.code"), span.get("process.exit.code"), "{span:#?}\nends as {exit:#?}");
        }
    }
}

fn assert_well_formed(span: &Span) {
    assert!(is_id(&span.trace_id, 32) && is_id(&span.span_id, 16), "{span:#?}");
    assert!(span.parent_span_id.is_empty() || is_id(&span.parent_span_id, 16), "{span:#?}");
    assert_eq!((span.scope.name.as_str(), span.kind), ("namespan.exec", 1), "{span:#?}");
    assert_ne!(span.trace_flags() & SAMPLED, 0, "{span:#?}");
    assert!(span.start_ns <= span.end_ns, "{span:#?}");
    assert!(!span.name.is_empty() && span.dropped_attributes == 0, "{span:#?}");
    assert!(span.links.len() <= 1, "{span:#?}");
    if span.parent_span_id.is_empty() {
        assert_ne!(*span.get("namespan.trace.boundary"), Value::Empty, "{span:#?}");
    } else {
        assert!(span.links.is_empty(), "{span:#?}");
    }
}

fn is_id(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().any(|digit| digit != b'0')
}
