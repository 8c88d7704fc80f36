//! A segment of a spool as a crash or a bad disk left it: what is found is counted, and the next look finds the same.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use namespan::fuzz;
use namespan::queue::Class;
use rustix::fs::{MemfdFlags, memfd_create};

const HEAD: usize = 64;
const BOOT: u128 = 7;

pub fn check(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if choice & 1 == 0 {
        seal(&mut bytes, choice >> 1);
    }
    let file = File::from(memfd_create("segment", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(&bytes, 0).unwrap();
    let Some(found) = fuzz::segment(&file, Class::Exec, BOOT).unwrap() else { return };
    assert!(found.settled <= found.written && found.waiting <= found.written);
    assert!(found.cut <= bytes.len() as u64);
    let len = file.metadata().unwrap().len();
    assert!(len == found.len && len >= HEAD as u64);
    let again = fuzz::segment(&file, Class::Exec, BOOT).unwrap().unwrap();
    assert_eq!(again, fuzz::Segment { lost: 0, cut: 0, ..found });
}

/// Makes the checksums of the head and of the first so many records right, which no chance would.
fn seal(bytes: &mut [u8], records: u8) {
    let Some((head, mut rest)) = bytes.split_first_chunk_mut::<HEAD>() else { return };
    head[..8].copy_from_slice(b"NSPOOL\x00\x01");
    put(head, 24, crc32fast::hash(&head[..24]));
    put(head, 28, crc32fast::hash(&head[32..48]));
    for _ in 0..records {
        let Some((head, body)) = rest.split_first_chunk_mut::<HEAD>() else { return };
        head[..4].copy_from_slice(b"NRE\x01");
        // Of the class that is looked for, and in a form that there is.
        head[48] = 1;
        head[49] %= 3;
        head[50] %= 3;
        let len = u32::from(head[12]);
        put(head, 12, len);
        put(head, 4, crc32fast::hash(&head[8..60]));
        let Some((_, next)) = body.split_at_mut_checked(len as usize) else { return };
        rest = next;
    }
}

fn put(head: &mut [u8; HEAD], at: usize, value: u32) {
    head[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
