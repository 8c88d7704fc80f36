//! Any bytes in as a segment, and no panic, nothing large, and the same at a second look.

use proptest::prelude::*;

use super::super::format::HEAD;
use super::super::segment::Segment;
use super::*;

/// As another run left it.
fn written() -> Vec<u8> {
    let rig = Rig::new();
    let mut run = rig.open();
    for records in 1..=5 {
        run.push(Class::Exec, records, 100 * records as usize);
    }
    rig.step(&mut run);
    run.pop().unwrap().deliver(1, 0);
    rig.step(&mut run);
    fs::read(&rig.files()[0]).unwrap()
}

fn read(bytes: &[u8]) {
    let rig = Rig::new();
    // Makes the directory.
    rig.finish(rig.open());
    let path = rig.settings.directory.join("main/logs").join("exec-00000000000000000001.segment");
    fs::write(&path, bytes).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let Some(found) = Segment::find(&file, Class::Exec, 1, 5).unwrap() else { return };
    assert!(found.segment.len <= bytes.len().max(HEAD) as u64);
    assert_eq!(found.segment.len + found.cut, bytes.len().max(HEAD) as u64);
    assert_eq!(found.segment.len, file.metadata().unwrap().len());
    // What was cut off is not found again.
    let again = Segment::find(&file, Class::Exec, 1, 5).unwrap().unwrap();
    assert_eq!((again.lost, again.cut, again.is_unknown), (0, 0, false));
    assert_eq!((again.segment.left, again.segment.len), (found.segment.left, found.segment.len));
    drop(file);
    let mut run = rig.open();
    assert_eq!(run.check().spool.unwrap().recovered, found.segment.left.records);
    let sent: u64 = run.send_all(&rig).into_iter().map(u64::from).sum();
    let corrupt: u64 = run.check().dropped.values().sum();
    assert_eq!(sent + corrupt, found.segment.left.records);
}

#[test]
fn a_segment_of_any_length_is_one() {
    let bytes = written();
    for len in (0..=bytes.len()).filter(|len| *len < 3 * HEAD || len % 7 == 0) {
        read(&bytes[..len]);
    }
    let empty = super::super::format::segment_head(5, super::super::format::Sums::default());
    for len in 0..=HEAD {
        read(&empty[..len]);
    }
}

#[test]
fn a_record_that_claims_to_be_larger_than_its_file_is_none() {
    let mut bytes = written();
    let record = Record {
        number: 1,
        class: Class::Exec,
        records: 1,
        protocol: Protocol::Grpc,
        compression: Compression::None,
        len: u32::MAX,
        plain_len: u32::MAX,
        body_crc: 0,
        boot_ns: 0,
        unix_ns: 0,
    };
    bytes.truncate(HEAD);
    bytes.extend(record.encode());
    read(&bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        read(&bytes);
    }

    #[test]
    fn a_segment_with_changes_does_no_harm(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        end in any::<prop::sample::Index>(),
        tail in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut bytes = written();
        for (at, with) in changes {
            let at = at.index(bytes.len());
            bytes[at] = with;
        }
        bytes.truncate(end.index(bytes.len() + 1));
        bytes.extend(tail);
        read(&bytes);
    }
}
