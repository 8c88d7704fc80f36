//! The bytes of one uprobe's record become a [`Hit`]. Total: any bytes give a hit or an error, never a panic.

use namespan_ebpf::uprobe_wire::{self as wire, RETURNED, VALUES_MAX, ValueHead, flag, kind, value};
use namespan_ebpf::wire::Process;
use thiserror::Error;
use zerocopy::FromBytes;

use super::attach::PlaceId;

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HitError {
    #[error("record of {have} bytes ends within its fixed part of {need}")]
    Short { have: usize, need: usize },
    #[error("record of {have} bytes says it is {said} long")]
    Length { have: usize, said: u32 },
    #[error("unknown kind of hit: {kind}")]
    Kind { kind: u16 },
    #[error("unknown kind of value: {kind}")]
    Value { kind: u8 },
    #[error("values of {said} bytes in {have}")]
    Values { have: usize, said: usize },
}

/// What happened at a place, borrowed from its record.
#[derive(Clone, Copy, Debug)]
pub struct Hit<'a> {
    /// Who it was, as of other events; the time is that of the hit, or of a call's beginning. It has no sections.
    pub process: Process,
    pub kind: Kind,
    pub place: PlaceId,
    /// Instruction pointer: the place's address in the process; of a return where it returned to.
    pub ip: u64,
    /// The thread's name, filled up with NULs.
    pub comm: [u8; 16],
    values: [Option<Captured<'a>>; VALUES_MAX],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Entry,
    Return,
    /// A call and its return.
    Call {
        /// From the one to the other by the boot clock, in nanoseconds.
        duration_ns: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Captured<'a> {
    pub value: Value<'a>,
    /// A string or bytes that go on beyond what is kept.
    pub truncated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    Int(i64),
    Uint(u64),
    Bool(bool),
    Pointer(u64),
    /// Any bytes.
    Bytes(&'a [u8]),
    /// Any bytes but NUL.
    Str(&'a [u8]),
    F64(f64),
    /// A null pointer where there should have been one to a string, to bytes or to a number.
    Null,
    /// The memory at the address could not be read: not mapped, or not present at that moment.
    Fault {
        address: u64,
    },
}

impl<'a> Hit<'a> {
    /// The captured argument `index`, in the order of the place's arguments.
    #[must_use]
    pub fn arg(&self, index: usize) -> Option<Captured<'a>> {
        self.values.get(index).copied().flatten().filter(|_| index != RETURNED)
    }

    /// The captured return value.
    #[must_use]
    pub fn returned(&self) -> Option<Captured<'a>> {
        self.values.get(RETURNED).copied().flatten()
    }
}

/// Decodes one record as the kernel side wrote it, by the layout of [`wire`].
pub fn decode(record: &[u8]) -> Result<Hit<'_>, HitError> {
    let (process, rest) = fixed::<Process>(record)?;
    if process.len as usize != record.len() {
        return Err(HitError::Length { have: record.len(), said: process.len });
    }
    let (hit, mut rest) = fixed::<wire::Hit>(rest)?;
    let kind = match process.kind {
        kind::ENTRY => Kind::Entry,
        kind::RETURN => Kind::Return,
        kind::CALL => Kind::Call { duration_ns: hit.duration_ns },
        kind => return Err(HitError::Kind { kind }),
    };
    let have = rest.len();
    let said = hit.values.iter().map(|head| head.len as usize).fold(0, usize::saturating_add);
    if have != said {
        return Err(HitError::Values { have, said });
    }
    let mut values = [None; VALUES_MAX];
    for (captured, head) in values.iter_mut().zip(&hit.values) {
        let bytes;
        (bytes, rest) = rest.split_at_checked(head.len as usize).ok_or(HitError::Values { have, said })?;
        *captured = value_of(head, bytes)?;
    }
    Ok(Hit { process, kind, place: PlaceId(hit.place), ip: hit.ip, comm: hit.comm, values })
}

fn fixed<T: FromBytes>(bytes: &[u8]) -> Result<(T, &[u8]), HitError> {
    T::read_from_prefix(bytes).map_err(|_| HitError::Short { have: bytes.len(), need: size_of::<T>() })
}

fn value_of<'a>(head: &ValueHead, bytes: &'a [u8]) -> Result<Option<Captured<'a>>, HitError> {
    let fault = head.flags & flag::FAULT != 0;
    let value = match head.kind {
        value::NONE => return Ok(None),
        kind if kind > value::F64_AT => return Err(HitError::Value { kind }),
        _ if fault && head.bits == 0 => Value::Null,
        _ if fault => Value::Fault { address: head.bits },
        value::INT => Value::Int(head.bits.cast_signed()),
        value::UINT => Value::Uint(head.bits),
        value::BOOL => Value::Bool(head.bits != 0),
        value::POINTER => Value::Pointer(head.bits),
        value::STRING => Value::Str(bytes),
        value::BYTES => Value::Bytes(bytes),
        value::F64 | value::F64_AT => Value::F64(f64::from_bits(head.bits)),
        #[expect(clippy::cast_possible_truncation, reason = "the number has 4 bytes")]
        value::F32 | value::F32_AT => Value::F64(f32::from_bits(head.bits as u32).into()),
        kind => return Err(HitError::Value { kind }),
    };
    Ok(Some(Captured { value, truncated: head.flags & flag::TRUNCATED != 0 }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::{FromZeros as _, IntoBytes as _};

    use super::*;

    fn record(kind: u16, values: [ValueHead; VALUES_MAX], data: &[u8]) -> Vec<u8> {
        let mut process = Process::new_zeroed();
        process.kind = kind;
        process.len = u32::try_from(wire::FIXED + data.len()).unwrap();
        let hit = wire::Hit { place: 7, duration_ns: 5, ip: 3, comm: *b"thread\0\0\0\0\0\0\0\0\0\0", values };
        [process.as_bytes(), hit.as_bytes(), data].concat()
    }

    fn head(kind: u8, bits: u64, len: u32, flags: u8) -> ValueHead {
        ValueHead { bits, len, kind, flags, reserved: 0 }
    }

    #[test]
    fn every_kind_of_value_is_decoded() {
        let mut values = [ValueHead::new_zeroed(); VALUES_MAX];
        values[0] = head(value::INT, u64::MAX, 0, 0);
        values[1] = head(value::STRING, 0, 5, 0);
        values[2] = head(value::BYTES, 100, 2, flag::TRUNCATED);
        values[3] = head(value::F32_AT, 1.5_f32.to_bits().into(), 0, 0);
        values[4] = head(value::STRING, 0, 0, flag::FAULT);
        values[5] = head(value::STRING, 4096, 0, flag::FAULT);
        values[RETURNED] = head(value::BOOL, 1, 0, 0);
        let record = record(kind::CALL, values, b"hello\0\x01");
        let hit = decode(&record).unwrap();
        assert_eq!(hit.kind, Kind::Call { duration_ns: 5 });
        let whole = |value| Some(Captured { value, truncated: false });
        assert_eq!(hit.arg(0), whole(Value::Int(-1)));
        assert_eq!(hit.arg(1), whole(Value::Str(b"hello")));
        assert_eq!(hit.arg(2), Some(Captured { value: Value::Bytes(b"\0\x01"), truncated: true }));
        assert_eq!(hit.arg(3), whole(Value::F64(1.5)));
        assert_eq!(hit.arg(4), whole(Value::Null));
        assert_eq!(hit.arg(5), whole(Value::Fault { address: 4096 }));
        assert_eq!(hit.arg(6), None);
        assert_eq!(hit.arg(RETURNED), None);
        assert_eq!(hit.returned(), whole(Value::Bool(true)));
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let none = [ValueHead::new_zeroed(); VALUES_MAX];
        assert_eq!(decode(&[]).unwrap_err(), HitError::Short { have: 0, need: size_of::<Process>() });
        assert_eq!(decode(&record(1, none, b"")).unwrap_err(), HitError::Kind { kind: 1 });
        assert_eq!(decode(&record(kind::ENTRY, none, b"x")).unwrap_err(), HitError::Values { have: 1, said: 0 });
        let mut values = none;
        values[0] = head(99, 0, 0, flag::FAULT);
        assert_eq!(decode(&record(kind::ENTRY, values, b"")).unwrap_err(), HitError::Value { kind: 99 });
        values[0] = head(value::STRING, 0, u32::MAX, 0);
        values[1] = head(value::STRING, 0, u32::MAX, 0);
        assert!(matches!(decode(&record(kind::ENTRY, values, b"")), Err(HitError::Values { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..1024), repair: bool) {
            if repair && bytes.len() >= 6 {
                let len = u32::try_from(bytes.len()).unwrap();
                bytes[..4].copy_from_slice(&len.to_ne_bytes());
                bytes[4..6].copy_from_slice(&kind::CALL.to_ne_bytes());
            }
            if let Ok(hit) = decode(&bytes) {
                let _value = hit.returned();
            }
        }

        #[test]
        fn any_values_are_decoded_or_refused(
            heads in proptest::collection::vec((0_u8..13, any::<u64>(), 0_u32..20, any::<u8>()), VALUES_MAX),
            data in proptest::collection::vec(any::<u8>(), 0..180),
        ) {
            let mut values = [ValueHead::new_zeroed(); VALUES_MAX];
            for (value, (kind, bits, len, flags)) in values.iter_mut().zip(heads) {
                *value = head(kind, bits, len, flags);
            }
            let said: u32 = values.iter().map(|head| head.len).sum();
            let adds_up = said as usize == data.len() && values.iter().all(|head| head.kind <= value::F64_AT);
            prop_assert_eq!(decode(&record(kind::ENTRY, values, &data)).is_ok(), adds_up);
        }
    }
}
