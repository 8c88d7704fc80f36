//! Links come in and end, each on whichever thread is free: to end one takes the kernel some 50 ms, nearly all of it waiting.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::thread;

use tokio::sync::mpsc;

use super::attach::Link;
use crate::lock::lock;

/// Threads that end links, while there are so many.
const THREADS: usize = 32;
/// Links that may wait.
const WAITING: usize = 4096;

/// Ends links beside the caller, who waits only where too many end.
#[derive(Debug)]
pub struct Detacher {
    queue: Arc<Mutex<Queue>>,
    /// Every thread has one too.
    running: mpsc::Sender<()>,
}

/// Ends when the detacher is dropped and all links have ended.
pub struct Detached(mpsc::Receiver<()>);

#[derive(Debug, Default)]
struct Queue {
    links: VecDeque<Link>,
    threads: usize,
}

impl Detacher {
    #[must_use]
    pub fn new() -> (Self, Detached) {
        let (running, ended) = mpsc::channel(1);
        (Self { queue: Arc::default(), running }, Detached(ended))
    }

    pub fn end(&self, links: Vec<Link>) {
        for link in links {
            self.end_one(link);
        }
    }

    fn end_one(&self, link: Link) {
        let mut queue = lock(&self.queue);
        if queue.links.len() >= WAITING {
            drop(queue);
            // It ends here, and its end is waited for.
            drop(link);
            return;
        }
        queue.links.push_back(link);
        if queue.threads < THREADS {
            let (shared, running) = (Arc::clone(&self.queue), self.running.clone());
            let started = thread::Builder::new().name("uprobes-end".to_owned()).spawn(move || {
                work(&shared);
                drop(running);
            });
            match started {
                Ok(_) => queue.threads += 1,
                // Nobody would take it.
                Err(_) if queue.threads == 0 => {
                    let link = queue.links.pop_back();
                    drop(queue);
                    drop(link);
                }
                Err(_) => {}
            }
        }
    }
}

impl Detached {
    pub async fn wait(mut self) {
        // Nothing is ever sent.
        while self.0.recv().await.is_some() {}
    }
}

/// Until nothing waits any more.
fn work(queue: &Mutex<Queue>) {
    loop {
        let link = {
            let mut queue = lock(queue);
            let Some(link) = queue.links.pop_front() else {
                queue.threads -= 1;
                return;
            };
            link
        };
        drop(link);
    }
}
