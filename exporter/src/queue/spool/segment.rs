//! One file of records of one class: written at its end, read anywhere, marked in place.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{fdatasync, ftruncate};
use rustix::io::pwritev;

use super::directory::Directory;
use super::format::{self, HEAD, MARK, Marks, Record, SUMS, Sums};
use crate::queue::Class;

#[derive(Debug)]
pub(crate) struct Segment {
    pub(super) class: Class,
    /// Its name, and its place among those of its class.
    pub(super) number: u64,
    /// What is beyond was not written as a whole.
    pub(super) len: u64,
    sums: Sums,
    /// What is not settled.
    pub(super) left: Left,
    /// Its records have times of this boot's clock.
    pub(super) is_of_this_boot: bool,
    /// There may be more to come.
    pub(super) is_open: bool,
    pub(super) aside: Option<Aside>,
    /// While it is written, or read.
    file: Option<Arc<File>>,
    is_dirty: bool,
}

/// From where on a segment could not be read, for a reason that may pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Aside {
    pub(super) offset: u64,
    /// Where to begin when it is looked at again: what was read before may have been forgotten since.
    pub(super) from: u64,
    pub(super) since: Instant,
    /// It is left alone until then.
    pub(super) until: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) batches: usize,
    pub(super) records: u64,
}

/// What a segment was found to be at the start.
#[derive(Debug)]
pub(crate) struct Found {
    pub(super) segment: Segment,
    /// Records that were written, and are not there.
    pub(super) lost: u64,
    /// Bytes at its end that are no record.
    pub(super) cut: u64,
    /// Nothing says what was lost.
    pub(super) is_unknown: bool,
    /// The highest number of a batch.
    pub(super) last_number: Option<u64>,
}

impl Found {
    pub(crate) fn told(self) -> crate::fuzz::Segment {
        let Self { segment, lost, cut, .. } = self;
        crate::fuzz::Segment {
            len: segment.len,
            written: segment.sums.written,
            settled: segment.sums.settled,
            waiting: segment.left.records,
            lost,
            cut,
        }
    }
}

impl Segment {
    /// An empty one. Nothing of it is left where this fails.
    pub(super) fn create(directory: &Directory, class: Class, number: u64, boot: u128) -> io::Result<Self> {
        let name = name(class, number);
        let file = directory.create(&name)?;
        if let Err(error) = file.write_all_at(&format::segment_head(boot, Sums::default()), 0) {
            // If this fails too, the next start removes what is no segment yet.
            directory.remove(&name).ok();
            return Err(error);
        }
        Ok(Self {
            class,
            number,
            len: HEAD as u64,
            sums: Sums::default(),
            left: Left::default(),
            is_of_this_boot: true,
            is_open: true,
            aside: None,
            file: Some(Arc::new(file)),
            is_dirty: true,
        })
    }

    /// From a file, of which the heads are read and no more. Its torn end is cut off, so that the next look finds the same.
    /// `None`: nothing in it is a segment's.
    pub(crate) fn find(file: &File, class: Class, number: u64, boot: u128) -> io::Result<Option<Found>> {
        let size = file.metadata()?.len();
        let mut head = [0; HEAD];
        let head_len = usize::try_from(size).unwrap_or(HEAD).min(HEAD);
        file.read_exact_at(&mut head[..head_len], 0)?;
        let (of_boot, sums) = format::segment(&head);
        let mut segment = Self {
            class,
            number,
            len: HEAD as u64,
            sums: Sums::default(),
            left: Left::default(),
            is_of_this_boot: of_boot == Some(boot) && boot != 0,
            is_open: false,
            aside: None,
            file: None,
            is_dirty: false,
        };
        let mut last_number = None;
        while let Some((record, marks)) = segment.head(file, segment.len, size)? {
            segment.len += record.total_len();
            segment.sums.written += u64::from(record.records);
            if marks.is_settled() {
                segment.sums.settled += u64::from(record.records);
            } else {
                segment.left.batches += 1;
                segment.left.records += u64::from(record.records);
            }
            last_number = last_number.max(Some(record.number));
        }
        if head_len == HEAD && of_boot.is_none() && sums.is_none() && last_number.is_none() {
            return Ok(None);
        }
        let cut = size.saturating_sub(segment.len);
        let known = sums.unwrap_or(segment.sums);
        // Of what is missing, some may have been settled.
        let lost = known.written.saturating_sub(segment.sums.written);
        let lost = lost.saturating_sub(known.settled.saturating_sub(segment.sums.settled));
        let is_whole = size == segment.len && of_boot.is_some() && sums == Some(segment.sums);
        if !is_whole {
            let boot = if segment.is_of_this_boot { boot } else { 0 };
            // In this order: were we killed in between, nothing would be counted as lost twice.
            file.write_all_at(&format::segment_head(boot, segment.sums), 0)?;
            ftruncate(file, segment.len)?;
            segment.is_dirty = true;
        }
        segment.is_open = segment.is_of_this_boot && lost == 0;
        let is_unknown = size >= HEAD as u64 && sums.is_none();
        Ok(Some(Found { segment, lost, cut, is_unknown, last_number }))
    }

    /// Writes a record at the end, wholly or not at all; where it begins.
    pub(super) fn append(&mut self, directory: &Directory, record: &Record, body: &[u8]) -> io::Result<(u64, Marks)> {
        let file = self.file(directory)?;
        let (head, at) = (record.encode(), self.len);
        let (_, marks) = Record::decode(&head).ok_or(io::ErrorKind::InvalidData)?;
        if let Err(error) = write_all(&file, &head, body, at) {
            // What cannot be cut off now is at the next start; until then nothing may come behind it.
            self.is_open &= ftruncate(&file, at).is_ok();
            return Err(error);
        }
        self.len += record.total_len();
        self.is_dirty = true;
        self.sums.written += u64::from(record.records);
        self.left.batches += 1;
        self.left.records += u64::from(record.records);
        // They say what was lost when something is: without them it is lost all the same.
        self.write_sums(&file).ok();
        Ok((at, marks))
    }

    /// The record's head there. `None`: there is none, or not what was written.
    pub(super) fn record(&mut self, directory: &Directory, at: u64) -> io::Result<Option<(Record, Marks)>> {
        let file = self.file(directory)?;
        self.head(&file, at, self.len)
    }

    /// The body of the record there, behind so many bytes of zeros. `None`: not what was written.
    pub(super) fn body(
        &mut self,
        directory: &Directory,
        (at, record): (u64, &Record),
        prefix: usize,
    ) -> io::Result<Option<Vec<u8>>> {
        let file = self.file(directory)?;
        let mut body = vec![0; prefix + record.len as usize];
        file.read_exact_at(&mut body[prefix..], at + HEAD as u64)?;
        Ok((crc32fast::hash(&body[prefix..]) == record.body_crc).then_some(body))
    }

    /// Marks the record there as settled. It counts as such also where it cannot be written.
    pub(super) fn settle(&mut self, directory: &Directory, at: u64, records: u32, mark: u32) -> io::Result<()> {
        self.left.batches = self.left.batches.saturating_sub(1);
        self.left.records = self.left.records.saturating_sub(records.into());
        if at >= self.len {
            // Cut off.
            return Ok(());
        }
        self.sums.settled += u64::from(records);
        let file = self.file(directory)?;
        file.write_all_at(&mark.to_le_bytes(), at + MARK)?;
        self.write_sums(&file)
    }

    /// Gives up what is there and beyond, so much of it for good.
    pub(super) fn cut(&mut self, directory: &Directory, at: u64, lost: Left) -> io::Result<()> {
        self.len = at;
        self.is_open = false;
        self.left.batches = self.left.batches.saturating_sub(lost.batches);
        self.left.records = self.left.records.saturating_sub(lost.records);
        self.sums.written = self.sums.written.saturating_sub(lost.records);
        let file = self.file(directory)?;
        self.write_sums(&file)?;
        Ok(ftruncate(&file, at)?)
    }

    /// Brings to the disk what a loss of power must not take.
    pub(super) fn sync(&mut self, directory: &Directory) -> io::Result<()> {
        // The marks of settled records are none of it.
        if std::mem::take(&mut self.is_dirty) && self.left.batches > 0 {
            fdatasync(&*self.file(directory)?)?;
        }
        Ok(())
    }

    /// Nothing is read or written here for now.
    pub(super) fn rest(&mut self) {
        if !self.is_open {
            self.file = None;
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.is_dirty && self.left.batches > 0
    }

    pub(super) fn name(&self) -> String {
        name(self.class, self.number)
    }

    fn file(&mut self, directory: &Directory) -> io::Result<Arc<File>> {
        if let Some(file) = &self.file {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(directory.file(&self.name())?);
        self.file = Some(Arc::clone(&file));
        Ok(file)
    }

    fn head(&self, file: &File, at: u64, size: u64) -> io::Result<Option<(Record, Marks)>> {
        let mut head = [0; HEAD];
        if at + HEAD as u64 > size {
            return Ok(None);
        }
        file.read_exact_at(&mut head, at)?;
        let is_whole = |(record, _): &(Record, Marks)| record.class == self.class && record.total_len() <= size - at;
        Ok(Record::decode(&head).filter(is_whole))
    }

    fn write_sums(&self, file: &File) -> io::Result<()> {
        file.write_all_at(&self.sums.encode(), SUMS)
    }
}

/// Its class and number, as text.
fn name(class: Class, number: u64) -> String {
    format!("{}-{number:020}.segment", word(class))
}

/// What a file's name says.
pub(super) fn parse(name: &str) -> Option<(Class, u64)> {
    let (class, number) = name.strip_suffix(".segment")?.split_once('-')?;
    let class = Class::ALL.into_iter().find(|known| word(*known) == class)?;
    let number = number.parse().ok()?;
    (self::name(class, number) == name).then_some((class, number))
}

fn word(class: Class) -> &'static str {
    match class {
        Class::Enforcement => "enforcement",
        Class::Note => "note",
        Class::Exec => "exec",
        Class::Exit => "exit",
        Class::Probe => "probe",
        Class::Call => "call",
        Class::Span => "span",
    }
}

/// In one call, unless the disk takes only a part.
fn write_all(file: &File, head: &[u8], body: &[u8], at: u64) -> io::Result<()> {
    let written = match pwritev(file, &[IoSlice::new(head), IoSlice::new(body)], at) {
        Ok(written) => written,
        Err(rustix::io::Errno::INTR) => 0,
        Err(error) => return Err(error.into()),
    };
    let (head_rest, body_rest) = (head.get(written..).unwrap_or_default(), written.saturating_sub(head.len()));
    file.write_all_at(head_rest, at + written as u64)?;
    let body = body.get(body_rest..).unwrap_or_default();
    file.write_all_at(body, at + (head.len() + body_rest) as u64)
}
