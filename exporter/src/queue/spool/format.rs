//! What a segment consists of, byte by byte: a head, then records, each a head and a request as it was sealed. Numbers are
//! little endian.
//!
//! | head of a segment | | head of a record | |
//! |---|---|---|---|
//! | 0 | `NSPOOL`, version (2) | 0 | `NRE`, version (1) |
//! | 8 | boot id (16) | 4 | CRC-32 of 8 to 60 |
//! | 24 | CRC-32 of 0 to 24 | 8 | CRC-32 of the body |
//! | 28 | CRC-32 of 32 to 48 | 12 | length of the body |
//! | 32 | records written (8) | 16 | length of the body before its compression |
//! | 40 | of these, settled (8) | 20 | log records or spans in it |
//! | 48 | nothing (16) | 24 | number (8) |
//! | | | 32 | boot clock when it was written (8) |
//! | | | 40 | nanoseconds since the Unix epoch then (8) |
//! | | | 48 | class, protocol, compression, nothing (9) |
//! | | | 60 | not 0: settled |
//!
//! Three things are ever written to twice, all of them short and within a page: the two sums with their checksum, and the
//! mark of what is settled, which is made of the record's checksum, so that no stray write sets it.

use crate::config::{Compression, Protocol};
use crate::queue::Class;

/// Of either head.
pub(super) const HEAD: usize = 64;
/// Where in a segment its sums and their checksum are.
pub(super) const SUMS: u64 = 28;
/// Where in a record its mark is.
pub(super) const MARK: u64 = 60;

const SEGMENT_MAGIC: [u8; 8] = *b"NSPOOL\x00\x01";
const RECORD_MAGIC: [u8; 4] = *b"NRE\x01";
const SETTLED: &[u8] = b"settled";

/// A segment's records, as far as was written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) written: u64,
    pub(super) settled: u64,
}

impl Sums {
    /// From [`SUMS`] on: checksum and sums.
    pub(super) fn encode(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[4..12].copy_from_slice(&self.written.to_le_bytes());
        bytes[12..].copy_from_slice(&self.settled.to_le_bytes());
        let crc = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

pub(super) fn segment_head(boot: u128, sums: Sums) -> [u8; HEAD] {
    let mut bytes = [0; HEAD];
    bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
    bytes[8..24].copy_from_slice(&boot.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..24]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    bytes[28..48].copy_from_slice(&sums.encode());
    bytes
}

/// The boot in which a segment was written, and its sums; each `None` where it is not what was written.
pub(super) fn segment(bytes: &[u8; HEAD]) -> (Option<u128>, Option<Sums>) {
    let is_ours = bytes[..8] == SEGMENT_MAGIC && u32_at(bytes, 24) == crc32fast::hash(&bytes[..24]);
    let mut boot = [0; 16];
    boot.copy_from_slice(&bytes[8..24]);
    let sums = Sums { written: u64_at(bytes, 32), settled: u64_at(bytes, 40) };
    let is_sound = bytes[28..48] == sums.encode();
    (is_ours.then(|| u128::from_le_bytes(boot)), is_sound.then_some(sums))
}

/// The head of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) number: u64,
    pub(super) class: Class,
    pub(super) records: u32,
    pub(super) protocol: Protocol,
    pub(super) compression: Compression,
    /// Of the body.
    pub(super) len: u32,
    pub(super) plain_len: u32,
    pub(super) body_crc: u32,
    pub(super) boot_ns: u64,
    pub(super) unix_ns: u64,
}

impl Record {
    /// Head and body.
    pub(super) fn total_len(&self) -> u64 {
        HEAD as u64 + u64::from(self.len)
    }

    pub(super) fn encode(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..4].copy_from_slice(&RECORD_MAGIC);
        for (at, value) in [(8, self.body_crc), (12, self.len), (16, self.plain_len), (20, self.records)] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        for (at, value) in [(24, self.number), (32, self.boot_ns), (40, self.unix_ns)] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes[48] = code(self.class);
        bytes[49] = match self.protocol {
            Protocol::Grpc => 0,
            Protocol::HttpProtobuf => 1,
            Protocol::HttpJson => 2,
        };
        bytes[50] = match self.compression {
            Compression::None => 0,
            Compression::Gzip => 1,
            Compression::Zstd => 2,
        };
        let crc = crc32fast::hash(&bytes[8..60]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// With the mark that is set, and the one that says settled. `None`: not what was written.
    pub(super) fn decode(bytes: &[u8; HEAD]) -> Option<(Self, Marks)> {
        let crc = crc32fast::hash(&bytes[8..60]);
        if bytes[..4] != RECORD_MAGIC || u32_at(bytes, 4) != crc {
            return None;
        }
        let record = Self {
            number: u64_at(bytes, 24),
            class: Class::ALL.into_iter().find(|class| code(*class) == bytes[48])?,
            records: u32_at(bytes, 20),
            protocol: *[Protocol::Grpc, Protocol::HttpProtobuf, Protocol::HttpJson].get(usize::from(bytes[49]))?,
            compression: *[Compression::None, Compression::Gzip, Compression::Zstd].get(usize::from(bytes[50]))?,
            len: u32_at(bytes, 12),
            plain_len: u32_at(bytes, 16),
            body_crc: u32_at(bytes, 8),
            boot_ns: u64_at(bytes, 32),
            unix_ns: u64_at(bytes, 40),
        };
        let mut hasher = crc32fast::Hasher::new_with_initial(crc);
        hasher.update(SETTLED);
        Some((record, Marks { found: u32_at(bytes, 60), settled: hasher.finalize().max(1) }))
    }
}

/// As spools have it that other versions wrote: in the order in which the classes came to be.
fn code(class: Class) -> u8 {
    match class {
        Class::Note => 0,
        Class::Exec => 1,
        Class::Exit => 2,
        Class::Span => 3,
        Class::Probe => 4,
        Class::Call => 5,
        Class::Enforcement => 6,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    found: u32,
    /// What is written at [`MARK`] once the record is settled.
    pub(super) settled: u32,
}

impl Marks {
    pub(super) fn is_settled(self) -> bool {
        self.found == self.settled
    }
}

fn u32_at(bytes: &[u8; HEAD], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8; HEAD], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: Record = Record {
        number: 7,
        class: Class::Exit,
        records: 512,
        protocol: Protocol::HttpJson,
        compression: Compression::Zstd,
        len: 1000,
        plain_len: 9000,
        body_crc: 0xdead_beef,
        boot_ns: 5,
        unix_ns: u64::MAX,
    };

    #[test]
    fn heads_come_back_and_no_changed_bit_goes_unnoticed() {
        let bytes = RECORD.encode();
        let (record, marks) = Record::decode(&bytes).unwrap();
        assert_eq!((record, marks.is_settled()), (RECORD, false));
        let sums = Sums { written: 9, settled: 2 };
        let head = segment_head(3, sums);
        assert_eq!(segment(&head), (Some(3), Some(sums)));
        for bit in 0..HEAD * 8 {
            let flipped = |bytes: &[u8; HEAD]| {
                let mut bytes = *bytes;
                bytes[bit / 8] ^= 1 << (bit % 8);
                bytes
            };
            match Record::decode(&flipped(&bytes)) {
                None => assert!(bit < 60 * 8),
                Some((record, marks)) => assert_eq!((record, marks.is_settled(), bit >= 60 * 8), (RECORD, false, true)),
            }
            let (boot, sums) = segment(&flipped(&head));
            assert_eq!((boot.is_none(), sums.is_none()), (bit < 28 * 8, (28 * 8..48 * 8).contains(&bit)), "{bit}");
        }
    }

    #[test]
    fn classes_are_on_disk_as_ever() {
        let codes = Class::ALL.map(|class| (class, Record { class, ..RECORD }.encode()[48]));
        let known = [Class::Note, Class::Exec, Class::Exit, Class::Span, Class::Probe, Class::Call, Class::Enforcement];
        assert!(codes.iter().all(|(class, code)| known[usize::from(*code)] == *class), "{codes:?}");
        for (class, _) in codes {
            assert_eq!(Record::decode(&Record { class, ..RECORD }.encode()).unwrap().0.class, class);
        }
        let mut unknown = RECORD.encode();
        unknown[48] = 7;
        let crc = crc32fast::hash(&unknown[8..60]);
        unknown[4..8].copy_from_slice(&crc.to_le_bytes());
        assert!(Record::decode(&unknown).is_none());
    }

    #[test]
    fn only_its_own_mark_settles_a_record() {
        let mark = |record: &Record| Record::decode(&record.encode()).unwrap().1.settled;
        let other = Record { number: 8, ..RECORD };
        for (with, settled) in [(mark(&RECORD), true), (mark(&other), false), (0, false)] {
            let mut bytes = RECORD.encode();
            bytes[60..].copy_from_slice(&with.to_le_bytes());
            assert_eq!(Record::decode(&bytes).unwrap().1.is_settled(), settled);
        }
    }
}
