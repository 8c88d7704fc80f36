//! A process that is killed at any moment, and what the next one finds.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use super::*;

const DIRECTORY: &str = "NAMESPAN_TEST_SPOOL";
const CHILD: &str = "queue::spool::tests::kill::the_one_that_is_killed";
/// Settled ones whose marks may not have been written.
const UNMARKED: usize = 16;

fn settings(directory: PathBuf) -> config::Spool {
    config::Spool { max_bytes: 64 << 20, ..config::Spool::at(directory) }
}

/// Says what it has taken from the queue, which is on disk then, and what it has settled: every other one.
#[tokio::test]
#[ignore = "the next test runs it, and kills it"]
async fn the_one_that_is_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let queue = Queue::open(Signal::Logs, "main", LIMITS, Some(&settings(directory.into()))).unwrap();
    let queue = Arc::new(queue);
    let mut held = Vec::new();
    let mut out = std::io::stdout();
    for number in 0_u64.. {
        let mut body = number.to_le_bytes().to_vec();
        body.resize(8 + fastrand::usize(..40_000), 7);
        let class = [Class::Note, Class::Exec, Class::Exit][fastrand::usize(..3)];
        queue.push(Batch::seal(class, 1, &body, Protocol::Grpc, Compression::None).unwrap());
        let mut taken = queue.pop().await.unwrap();
        writeln!(out, "\ntaken {number}").unwrap();
        if number % 2 == 0 {
            taken.deliver(1, 0);
            drop(taken);
            writeln!(out, "\nsettled {number}").unwrap();
        } else {
            held.push(taken);
        }
    }
}

#[test]
fn nothing_that_was_on_disk_is_lost_and_next_to_nothing_comes_twice() {
    for lines in [1, 2, 3, 10, 50, 51, 200, 777] {
        let mut rig = Rig::new();
        rig.settings = settings(rig.settings.directory);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([CHILD, "--exact", "--ignored", "--nocapture"])
            .env(DIRECTORY, &rig.settings.directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BTreeMap::new();
        let mut read = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let Some((what, number)) = line.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            let is_settled = match what {
                "taken" => false,
                "settled" => true,
                _ => continue,
            };
            said.insert(number, is_settled);
            read += 1;
            if read == lines {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(read >= lines, "the process ended by itself");

        let mut run = rig.open();
        let mut found = BTreeSet::new();
        rig.step(&mut run);
        while let Some(mut taken) = run.pop() {
            let number = u64::from_le_bytes(taken.batch().message()[..8].try_into().unwrap());
            assert!(found.insert(number));
            taken.deliver(1, 0);
            drop(taken);
            rig.step(&mut run);
        }
        assert_eq!(run.dropped(), []);
        let last = *said.keys().next_back().unwrap();
        let unsettled = said.iter().filter(|(_, is_settled)| !**is_settled).map(|(number, _)| *number);
        // The last was perhaps settled without a word.
        let missing: Vec<u64> = unsettled.filter(|number| *number < last && !found.contains(number)).collect();
        assert!(missing.is_empty(), "{missing:?} after {lines}");
        let twice = found.iter().filter(|number| said.get(number) == Some(&true)).count();
        assert!(twice <= UNMARKED, "{twice} of {}", said.len());
    }
}
