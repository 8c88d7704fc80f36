//! All segments of one queue: a stream for each class, written at one end and read from the other.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::age::Moment;
use super::directory::{Directory, LOCK};
use super::format::{HEAD, Marks, Record};
use super::segment::{self, Aside, Found, Left, Segment};
use super::{RETRY, SpoolError};
use crate::config::{self, Signal};
use crate::queue::{Batch, Class, Counters, batch};

const SEGMENT_MAX: u64 = 8 << 20;
const SEGMENT_MIN: u64 = 64 << 10;
/// A segment that is still written goes already when it is this large and all of it is settled: what is gone before it
/// reaches the disk costs no wear.
const EARLY: u64 = 1 << 20;

/// Where a batch is, among those of its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::queue) struct Place {
    pub(in crate::queue) class: Class,
    pub(super) segment: u64,
    offset: u64,
}

impl Place {
    /// In the same segment.
    pub(super) fn is_with(self, other: Self) -> bool {
        (self.class, self.segment) == (other.class, other.segment)
    }
}

/// A batch on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::queue) struct Kept {
    pub(in crate::queue) place: Place,
    pub(in crate::queue) records: u32,
    /// What says that it is settled.
    mark: u32,
    pub(super) written: Moment,
    /// The boot clock says how old it is.
    pub(super) is_of_this_boot: bool,
}

#[derive(Debug)]
pub(super) struct Store {
    directory: Directory,
    /// By class.
    streams: [Stream; Class::ALL.len()],
    bytes: u64,
    max_bytes: u64,
    max_age: Duration,
    segment_bytes: u64,
    next_segment: u64,
    boot: u128,
    /// There are names that a loss of power may take.
    has_new_names: bool,
}

#[derive(Debug)]
struct Stream {
    segments: VecDeque<Segment>,
    /// What is before it was read.
    cursor: Place,
}

/// What was there at the start.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) left: Left,
    /// Written, and not there.
    pub(super) lost: u64,
    pub(super) next_number: u64,
}

/// Whether there is room for a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    Enough,
    /// Once this is gone.
    Instead(Place),
    None,
}

/// What comes next in a stream.
#[derive(Debug)]
pub(super) enum Next {
    Nothing,
    Batch(u64, Record, Kept),
    /// What is there is not what was written.
    Damaged(Place),
    /// What is there cannot be read.
    Unread(Place, io::Error),
}

impl Store {
    pub(super) fn open(
        signal: Signal,
        destination: &str,
        settings: &config::Spool,
        (boot, counters): (u128, &Counters),
    ) -> Result<(Self, Recovered), SpoolError> {
        let below = match signal {
            Signal::Logs => "logs",
            Signal::Traces => "traces",
        };
        let directory = Directory::open(&settings.directory, destination, below)?;
        let stream =
            |class| Stream { segments: VecDeque::new(), cursor: Place { class, segment: 0, offset: HEAD as u64 } };
        let mut store = Self {
            directory,
            streams: Class::ALL.map(stream),
            bytes: 0,
            max_bytes: settings.max_bytes,
            max_age: settings.max_age,
            segment_bytes: (settings.max_bytes / 16).clamp(SEGMENT_MIN, SEGMENT_MAX),
            next_segment: 1,
            boot,
            has_new_names: false,
        };
        let recovered = store.recover(signal, counters).map_err(|source| {
            let path = store.directory.path.clone();
            SpoolError::Unusable { path, source }
        })?;
        Ok((store, recovered))
    }

    fn recover(&mut self, signal: Signal, counters: &Counters) -> io::Result<Recovered> {
        let (mut recovered, mut strangers) = (Recovered::default(), Vec::new());
        for name in self.directory.names()? {
            if name == LOCK {
                continue;
            }
            let parsed = segment::parse(&name).filter(|(class, _)| class.signal() == signal);
            let Some((class, number)) = parsed else {
                strangers.push(name);
                continue;
            };
            self.next_segment = self.next_segment.max(number.saturating_add(1));
            let found = match self.directory.file(&name) {
                Ok(file) => Segment::find(&file, class, number, self.boot),
                Err(error) => {
                    tracing::warn!(name, %error, "this is in the spool, and not opened");
                    counters.spool_error();
                    continue;
                }
            };
            match found {
                Ok(Some(found)) => self.take_in(found, &mut recovered, counters),
                Ok(None) => strangers.push(name),
                Err(error) => {
                    tracing::error!(name, %error, "a segment of the spool cannot be used; it is left where it is");
                    counters.spool_error();
                }
            }
        }
        if !strangers.is_empty() {
            let path = self.directory.path.display();
            tracing::warn!(%path, files = ?strangers, "the spool has files that are none of ours; they are left alone");
        }
        for stream in &mut self.streams {
            stream.segments.make_contiguous().sort_by_key(|segment| segment.number);
            let last = stream.segments.len().saturating_sub(1);
            for (index, segment) in stream.segments.iter_mut().enumerate() {
                segment.is_open &= index == last;
            }
        }
        self.reap(u64::MAX)?;
        Ok(recovered)
    }

    fn take_in(&mut self, found: Found, recovered: &mut Recovered, counters: &Counters) {
        let Found { segment, lost, cut, is_unknown, last_number } = found;
        let file = self.directory.path.join(segment.name());
        if lost > 0 || is_unknown {
            tracing::error!(
                file = %file.display(),
                bytes = cut,
                records = lost,
                "a segment of the spool is damaged: the rest of it is lost"
            );
        } else if cut > 0 {
            tracing::warn!(
                file = %file.display(),
                bytes = cut,
                "a segment of the spool ended within a batch, as after a crash; its end is cut off"
            );
        }
        if cut > 0 || lost > 0 || is_unknown {
            counters.spool_cut();
        }
        recovered.left.batches += segment.left.batches;
        recovered.left.records += segment.left.records;
        recovered.lost += lost;
        recovered.next_number = recovered.next_number.max(last_number.map_or(0, |last| last.saturating_add(1)));
        self.bytes += segment.len;
        let stream = &mut self.streams[segment.class as usize];
        stream.segments.push_back(segment);
    }

    pub(super) fn path(&self) -> &Path {
        &self.directory.path
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn segments(&self) -> usize {
        self.streams.iter().map(|stream| stream.segments.len()).sum()
    }

    /// Where the room for this batch is to come from: from what is settled, or from the last class.
    pub(super) fn room(&mut self, batch: &Batch) -> io::Result<Room> {
        // A new segment may be needed.
        let needed = 2 * HEAD as u64 + batch.message().len() as u64;
        if needed > self.max_bytes {
            return Ok(Room::None);
        }
        if self.bytes + needed <= self.max_bytes {
            return Ok(Room::Enough);
        }
        self.reap(0)?;
        if self.bytes + needed <= self.max_bytes {
            return Ok(Room::Enough);
        }
        let oldest = self.streams.iter().rev().find_map(|stream| stream.segments.front());
        Ok(match oldest {
            Some(segment) if segment.class >= batch.class() => Room::Instead(segment.place(0)),
            Some(_) | None => Room::None,
        })
    }

    pub(super) fn append(&mut self, number: u64, batch: &Batch, now: Moment) -> io::Result<Kept> {
        let body = batch.message();
        let record = Record {
            number,
            class: batch.class(),
            records: batch.records(),
            protocol: batch.protocol(),
            compression: batch.compression(),
            len: u32::try_from(body.len()).map_err(|_| io::ErrorKind::FileTooLarge)?,
            plain_len: batch.plain_len(),
            body_crc: crc32fast::hash(body),
            boot_ns: now.boot_ns,
            unix_ns: now.unix_ns,
        };
        let segment = self.open_segment(&record)?;
        let number = segment.number;
        let directory = &self.directory;
        let Some(segment) = self.streams[record.class as usize].segments.back_mut() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        debug_assert_eq!(segment.number, number);
        let (offset, marks) = segment.append(directory, &record, body)?;
        self.bytes += record.total_len();
        Ok(kept(segment, offset, &record, marks))
    }

    /// The one that the record goes into.
    fn open_segment(&mut self, record: &Record) -> io::Result<&mut Segment> {
        let segments = &mut self.streams[record.class as usize].segments;
        let max = self.segment_bytes;
        let is_full = |segment: &Segment| segment.len > HEAD as u64 && segment.len + record.total_len() > max;
        if !segments.back().is_some_and(|last| last.is_open && !is_full(last)) {
            if let Some(last) = segments.back_mut() {
                last.is_open = false;
                last.sync(&self.directory)?;
                last.rest();
            }
            let segment = loop {
                let number = self.next_segment;
                self.next_segment = number.checked_add(1).ok_or(io::ErrorKind::InvalidFilename)?;
                match Segment::create(&self.directory, record.class, number, self.boot) {
                    // Something has that name.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    created => break created?,
                }
            };
            self.bytes += segment.len;
            self.has_new_names = true;
            segments.push_back(segment);
        }
        segments.back_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// What comes next of a class that is not settled.
    pub(super) fn next(&mut self, class: Class) -> Next {
        let Stream { segments, cursor, .. } = &mut self.streams[class as usize];
        let mut index = segments.partition_point(|segment| segment.number < cursor.segment);
        loop {
            let count = segments.len();
            let Some(segment) = segments.get_mut(index) else { return Next::Nothing };
            if segment.aside.is_some_and(|aside| aside.until.is_some()) {
                index += 1;
                continue;
            }
            if segment.number != cursor.segment {
                *cursor = segment.place(HEAD as u64);
            }
            if segment.left.batches == 0 {
                // Also where it should be gone, and could not be removed.
                cursor.offset = segment.len;
            }
            if cursor.offset >= segment.len {
                if index + 1 == count {
                    return Next::Nothing;
                }
                segment.rest();
                index += 1;
                continue;
            }
            match segment.record(&self.directory, cursor.offset) {
                Ok(Some((record, marks))) if marks.is_settled() => cursor.offset += record.total_len(),
                Ok(Some((record, marks))) => {
                    return Next::Batch(record.number, record, kept(segment, cursor.offset, &record, marks));
                }
                Ok(None) => return Next::Damaged(*cursor),
                Err(error) => return Next::Unread(*cursor, error),
            }
        }
    }

    /// What is there and behind it in its segment could not be read: it is left alone for a while. `false`: that would not
    /// help, or was done for as long as anything is kept.
    pub(super) fn set_aside(&mut self, place: Place, error: &io::Error, now: Instant) -> bool {
        let Some(segment) = segment_of(&mut self.streams, place) else { return false };
        let known = segment.aside.filter(|aside| aside.offset == place.offset);
        let since = known.map_or(now, |aside| aside.since);
        if !may_pass(error) || now.saturating_duration_since(since) > self.max_age {
            return false;
        }
        segment.aside = Some(Aside { offset: place.offset, from: place.offset, since, until: Some(now + RETRY) });
        // What comes must not have to wait for it.
        segment.is_open = false;
        segment.rest();
        true
    }

    /// What was left alone for long enough is looked at again.
    pub(super) fn take_back(&mut self, now: Instant) {
        for Stream { segments, cursor } in &mut self.streams {
            for segment in segments {
                if let Some(aside) = &mut segment.aside
                    && aside.until.is_some_and(|until| until <= now)
                {
                    aside.until = None;
                    let place = Place { class: segment.class, segment: segment.number, offset: aside.from };
                    *cursor = place.min(*cursor);
                }
            }
        }
    }

    /// When the first of what is left alone is to be looked at again.
    pub(super) fn aside_until(&self) -> Option<Instant> {
        let segments = self.streams.iter().flat_map(|stream| &stream.segments);
        segments.filter_map(|segment| segment.aside?.until).min()
    }

    /// Behind this one, which is read.
    pub(super) fn pass(&mut self, record: &Record, kept: &Kept) {
        let offset = kept.place.offset + record.total_len();
        self.streams[kept.place.class as usize].cursor = Place { offset, ..kept.place };
    }

    /// To there again.
    pub(super) fn rewind(&mut self, place: Place) {
        let cursor = &mut self.streams[place.class as usize].cursor;
        *cursor = place.min(*cursor);
        // Else the cursor leaves it behind together with the rest of its segment, and comes back for that alone.
        if let Some(aside) = segment_of(&mut self.streams, place).and_then(|segment| segment.aside.as_mut()) {
            aside.from = aside.from.min(place.offset);
        }
    }

    /// `None`: not what was written.
    pub(super) fn read(&mut self, record: &Record, kept: &Kept) -> io::Result<Option<Batch>> {
        let Self { directory, streams, .. } = self;
        let Some(segment) = segment_of(streams, kept.place) else { return Ok(None) };
        let prefix = batch::prefix_len(record.protocol);
        let Some(body) = segment.body(directory, (kept.place.offset, record), prefix)? else { return Ok(None) };
        let form = (record.protocol, record.compression);
        Ok(Batch::restore(record.class, record.records, form, record.plain_len, body).ok())
    }

    /// Not needed any more.
    pub(super) fn settle(&mut self, kept: &Kept) -> io::Result<()> {
        let Self { directory, streams, .. } = self;
        let Some(segment) = segment_of(streams, kept.place) else { return Ok(()) };
        let settled = segment.settle(directory, kept.place.offset, kept.records, kept.mark);
        let is_done = segment.left.batches == 0;
        let cursor = self.streams[kept.place.class as usize].cursor;
        if is_done {
            settled.and(self.reap(EARLY.min(self.segment_bytes / 2)))
        } else {
            if kept.place.segment != cursor.segment
                && let Some(segment) = segment_of(&mut self.streams, kept.place)
            {
                segment.rest();
            }
            settled
        }
    }

    /// What is not settled in a segment.
    pub(super) fn left(&mut self, place: Place) -> Left {
        segment_of(&mut self.streams, place).map_or_else(Left::default, |segment| segment.left)
    }

    /// Gives up what is there and beyond, so much of it for good.
    pub(super) fn cut(&mut self, place: Place, lost: Left) -> io::Result<()> {
        let Self { directory, streams, .. } = self;
        let Some(segment) = segment_of(streams, place) else { return Ok(()) };
        self.bytes -= segment.len.saturating_sub(place.offset);
        let cut = segment.cut(directory, place.offset, lost);
        cut.and(self.reap(self.segment_bytes))
    }

    /// With all that is in it.
    pub(super) fn remove(&mut self, place: Place) -> io::Result<()> {
        let Some(segment) = segment_of(&mut self.streams, place) else { return Ok(()) };
        segment.left = Left::default();
        segment.is_open = false;
        self.reap(self.segment_bytes)
    }

    /// Removes what is settled as a whole; what is still written only if larger than told.
    pub(super) fn reap(&mut self, open_from: u64) -> io::Result<()> {
        let mut result = Ok(());
        for stream in &mut self.streams {
            stream.segments.retain(|segment| {
                if segment.left.batches > 0 || (segment.is_open && segment.len <= open_from.max(HEAD as u64)) {
                    return true;
                }
                match self.directory.remove(&segment.name()) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        // Tried again with the next one.
                        result = Err(error);
                        true
                    }
                    Ok(()) | Err(_) => {
                        self.bytes -= segment.len;
                        false
                    }
                }
            });
        }
        result
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.streams.iter().flat_map(|stream| &stream.segments).any(Segment::is_dirty)
    }

    /// Brings to the disk what a loss of power must not take.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        let segments = self.streams.iter_mut().flat_map(|stream| &mut stream.segments);
        let mut result = Ok(());
        for segment in segments {
            result = result.and(segment.sync(&self.directory));
        }
        if std::mem::take(&mut self.has_new_names) {
            result = result.and(self.directory.sync());
        }
        result
    }
}

impl Segment {
    fn place(&self, offset: u64) -> Place {
        Place { class: self.class, segment: self.number, offset }
    }
}

fn segment_of(streams: &mut [Stream; Class::ALL.len()], place: Place) -> Option<&mut Segment> {
    let segments = &mut streams[place.class as usize].segments;
    let at = segments.binary_search_by_key(&place.segment, |segment| segment.number).ok()?;
    segments.get_mut(at)
}

/// Whether a later look may find what was written: the disk or the network behind it fails, or files can't be opened for now.
fn may_pass(error: &io::Error) -> bool {
    // What is too short, no file of ours, or gone, stays so.
    Errno::from_io_error(error).is_some_and(|errno| errno != Errno::NOENT && errno != Errno::LOOP)
}

fn kept(segment: &Segment, offset: u64, record: &Record, marks: Marks) -> Kept {
    Kept {
        place: segment.place(offset),
        records: record.records,
        mark: marks.settled,
        written: Moment { boot_ns: record.boot_ns, unix_ns: record.unix_ns },
        is_of_this_boot: segment.is_of_this_boot,
    }
}
