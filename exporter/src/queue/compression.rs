//! Bytes in, a body for the wire out: compressed with what is kept from one batch to the next.

use std::cell::RefCell;
use std::io::{self, Read as _};

use flate2::read::GzDecoder;
use flate2::{Compress, FlushCompress, Status};

use crate::config::Compression;

/// On our records this costs half of zstd's level 1 and two thirds of gzip's, and makes them as small.
const ZSTD_LEVEL: i32 = -1;
/// Of gzip's window, as a power of two: what the format takes at most.
const WINDOW_BITS: u8 = 15;

/// Contexts are some hundred kilobytes each: there is one for each thread that compresses, and only once it does.
#[derive(Default)]
struct Compressor {
    gzip: Option<Compress>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    /// What comes out, until its length is known.
    out: Vec<u8>,
}

thread_local! {
    static COMPRESSOR: RefCell<Compressor> = RefCell::default();
}

/// `prefix` bytes to be written by the caller, then the message; nothing more is held in memory for it.
pub(super) fn compress(prefix: usize, plain: &[u8], compression: Compression) -> io::Result<Vec<u8>> {
    let framed = |message: &[u8]| {
        let mut body = Vec::with_capacity(prefix + message.len());
        body.resize(prefix, 0);
        body.extend_from_slice(message);
        body
    };
    if compression == Compression::None {
        return Ok(framed(plain));
    }
    COMPRESSOR.with_borrow_mut(|Compressor { gzip, zstd, out }| {
        out.clear();
        match compression {
            Compression::None => {}
            Compression::Gzip => {
                // Level 1 costs about a quarter of level 6 and gives up a third of the ratio, measured on our records.
                let gzip = gzip.get_or_insert_with(|| Compress::new_gzip(flate2::Compression::fast(), WINDOW_BITS));
                deflate(gzip, plain, out)?;
            }
            Compression::Zstd => {
                let zstd = match zstd {
                    Some(zstd) => zstd,
                    None => zstd.insert(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
                };
                out.reserve(zstd::zstd_safe::compress_bound(plain.len()));
                zstd.compress_to_buffer(plain, out)?;
            }
        }
        Ok(framed(out))
    })
}

fn deflate(gzip: &mut Compress, plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    gzip.reset();
    loop {
        // Our records shrink to a sixteenth.
        out.reserve(plain.len() / 8 + 64);
        let read = usize::try_from(gzip.total_in()).map_err(io::Error::other)?;
        match gzip.compress_vec(&plain[read..], out, FlushCompress::Finish)? {
            Status::StreamEnd => return Ok(()),
            Status::Ok | Status::BufError => {}
        }
    }
}

/// `len`: of what comes out; more is an error, whoever wrote the message.
pub(super) fn decompress(message: &[u8], compression: Compression, len: usize) -> io::Result<Vec<u8>> {
    let plain = match compression {
        Compression::None => message.to_vec(),
        Compression::Gzip => {
            let mut plain = Vec::with_capacity(len);
            GzDecoder::new(message).take(len as u64 + 1).read_to_end(&mut plain)?;
            plain
        }
        Compression::Zstd => zstd::bulk::decompress(message, len)?,
    };
    if plain.len() == len { Ok(plain) } else { Err(io::ErrorKind::InvalidData.into()) }
}
