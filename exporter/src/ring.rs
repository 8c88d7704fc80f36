//! Stage 1: the ring buffer's waiting records, whole, in place.

use std::io;

use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;

/// The reader's end of the ring.
pub struct Ring {
    fd: AsyncFd<RingBuf<MapData>>,
}

impl Ring {
    /// Must be called within a tokio runtime.
    #[expect(
        deprecated,
        reason = "the successor is unsafe, for types that may close their descriptor early; ours can't"
    )]
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        Ok(Self { fd: AsyncFd::new(ring)? })
    }

    /// Waits until the kernel side says that many bytes wait. Fewer may wait without a word: read on a timer too.
    pub async fn wait(&mut self) -> io::Result<()> {
        self.fd.readable_mut().await?.clear_ready();
        Ok(())
    }

    /// Hands up to `most` records to `each`, in the order they were written; how many there were.
    pub fn read(&mut self, most: usize, mut each: impl FnMut(&[u8])) -> usize {
        let ring = self.fd.get_mut();
        for read in 0..most {
            let Some(record) = ring.next() else { return read };
            each(&record);
        }
        most
    }
}
