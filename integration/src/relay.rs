//! A Unix socket that leads to another one, and can be cut.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Passes on what is said, until it is dropped.
#[derive(Debug)]
pub struct Relay {
    path: PathBuf,
    cut: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<UnixStream>>>,
}

impl Relay {
    /// Listens at `path` for those who want to talk to `target`.
    #[must_use]
    pub fn start(path: &Path, target: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let relay = Self { path: path.to_owned(), cut: Arc::default(), streams: Arc::default() };
        let (cut, streams, target) = (relay.cut.clone(), relay.streams.clone(), target.to_owned());
        thread::spawn(move || {
            for client in listener.incoming() {
                if cut.load(Relaxed) {
                    return;
                }
                let (client, server) = (client.unwrap(), UnixStream::connect(&target).unwrap());
                pass(&client, &server);
                pass(&server, &client);
                streams.lock().unwrap_or_else(PoisonError::into_inner).extend([client, server]);
            }
        });
        relay
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cut.store(true, Relaxed);
        // Whoever waits for a caller is woken by one.
        UnixStream::connect(&self.path).ok();
        fs::remove_file(&self.path).ok();
        for stream in self.streams.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

fn pass(from: &UnixStream, to: &UnixStream) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || {
        // Either side may hang up.
        io::copy(&mut from, &mut to).ok();
        to.shutdown(Shutdown::Write).ok();
    });
}
