//! Attributes in, within the limits the user has set; what is over is counted.
#![expect(clippy::inline_always, reason = "some thirty a record: a key whose length is known is copied without a call")]

use crate::config::AttributeLimits;
use crate::event::Event;
use crate::model::{proto, semconv, text};
use namespan_ebpf::wire::flag;

pub(super) struct Attributes<'a> {
    out: &'a mut Vec<u8>,
    /// Number of the `attributes` field.
    field: u32,
    limits: AttributeLimits,
    /// For values that are put together here.
    scratch: &'a mut Vec<u8>,
    written: usize,
    dropped: u32,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>, field: u32, limits: AttributeLimits, scratch: &'a mut Vec<u8>) -> Self {
        Self { out, field, limits, scratch, written: 0, dropped: 0 }
    }

    pub(super) fn dropped(&self) -> u32 {
        self.dropped
    }

    /// Left out if empty.
    #[inline(always)]
    pub(super) fn text(&mut self, key: &str, value: &[u8]) {
        if !value.is_empty() {
            self.present(key, Some(value));
        }
    }

    /// Sent even if empty.
    #[inline(always)]
    pub(super) fn present(&mut self, key: &str, value: Option<&[u8]>) {
        if let Some(value) = value {
            self.put(key, proto::Value::Text(text::shortened(value, self.limits.value_length)));
        }
    }

    /// Whole, whatever the limit on lengths: half of it would be somebody else's.
    #[inline(always)]
    pub(super) fn id(&mut self, key: &str, value: &[u8]) {
        self.put(key, proto::Value::Text(value));
    }

    #[inline(always)]
    pub(super) fn int(&mut self, key: &str, value: impl Into<i64>) {
        self.put(key, proto::Value::Int(value.into()));
    }

    #[inline(always)]
    pub(super) fn int_unless(&mut self, key: &str, value: u32, usual: u32) {
        if value != usual {
            self.int(key, value);
        }
    }

    #[inline(always)]
    pub(super) fn double(&mut self, key: &str, value: f64) {
        self.put(key, proto::Value::Double(value));
    }

    #[inline(always)]
    pub(super) fn bool(&mut self, key: &str, value: bool) {
        self.put(key, proto::Value::Bool(value));
    }

    /// Sent only if true.
    #[inline(always)]
    pub(super) fn flag(&mut self, key: &str, value: bool) {
        if value {
            self.bool(key, value);
        }
    }

    /// The limit on lengths was applied to each element.
    #[inline(always)]
    pub(super) fn array(&mut self, key: &str, elements: &[u8]) {
        self.put(key, proto::Value::Array(elements));
    }

    pub(super) fn time(&mut self, key: &str, unix_ns: u64) {
        self.composed(key, |out| text::iso_8601(out, unix_ns));
    }

    /// The name of a number, or the number itself behind a prefix.
    pub(super) fn named(&mut self, key: &str, name: Option<&str>, prefix: &str, number: u32) {
        if let Some(name) = name {
            return self.text(key, name.as_bytes());
        }
        self.composed(key, |out| {
            out.extend_from_slice(prefix.as_bytes());
            text::decimal(out, number.into());
        });
    }

    /// The unified hierarchy, unless the process is in its root and some other hierarchy tells more: so it is on hosts
    /// where containers are in cgroup v1 only.
    pub(super) fn cgroup(&mut self, event: &Event<'_>) {
        let (prefix, path) = if event.cgroup.is_root() && !event.cgroup_v1.is_root() {
            ("", event.cgroup_v1)
        } else if event.cgroup.is_root() && event.process.flags & flag::CGROUP_FAULT != 0 {
            return;
        } else {
            ("0::", event.cgroup)
        };
        self.composed(semconv::PROCESS_LINUX_CGROUP, |out| {
            out.extend_from_slice(prefix.as_bytes());
            if path.is_root() {
                out.push(b'/');
            }
            for component in path.root_to_leaf() {
                out.push(b'/');
                out.extend_from_slice(component);
            }
        });
    }

    /// Attributes that are written already, as fields of the same message; within the limit on their number.
    pub(super) fn written(&mut self, mut fields: &[u8]) {
        while let Some(len) = proto::first_field_len(fields) {
            let (field, rest) = fields.split_at(len);
            if !self.is_full() {
                self.out.extend_from_slice(field);
            }
            fields = rest;
        }
    }

    pub(super) fn composed(&mut self, key: &str, compose: impl FnOnce(&mut Vec<u8>)) {
        if self.is_full() {
            return;
        }
        self.scratch.clear();
        compose(self.scratch);
        let value = proto::Value::Text(text::shortened(self.scratch, self.limits.value_length));
        proto::key_value(self.out, self.field, key, value);
    }

    #[inline(always)]
    fn put(&mut self, key: &str, value: proto::Value<'_>) {
        if !self.is_full() {
            proto::key_value(self.out, self.field, key, value);
        }
    }

    /// Counts the attribute as one or the other.
    fn is_full(&mut self) -> bool {
        let full = self.written >= self.limits.count;
        if full {
            self.dropped += 1;
        } else {
            self.written += 1;
        }
        full
    }
}
