//! The binary as systemd starts it: what it says on the socket, from start to end.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::watch::{ready, slowness};

const PATIENCE: Duration = Duration::from_secs(60);

fn heard(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 4096];
    let len = socket.recv(&mut bytes).unwrap();
    String::from_utf8(bytes[..len].to_vec()).unwrap()
}

#[test]
fn systemd_hears_when_it_watches_that_it_goes_on_and_that_it_stops() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE * slowness())).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_namespan"));
    command.args(["run", "--console", "jsonl"]).stdin(Stdio::null()).stdout(Stdio::null());
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")) {
        command.env_remove(name);
    }
    let mut namespan = command.spawn().unwrap();
    assert_eq!(heard(&socket), "READY=1\nSTATUS=watching\n");
    let began = Instant::now();
    for _ in 0..4 {
        assert_eq!(heard(&socket), "WATCHDOG=1\n");
    }
    // The first one comes at once.
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    kill_process(Pid::from_child(&namespan), Signal::TERM).unwrap();
    let mut last = heard(&socket);
    while last == "WATCHDOG=1\n" {
        last = heard(&socket);
    }
    assert_eq!(last, "STOPPING=1\nSTATUS=draining\n");
    assert!(namespan.wait().unwrap().success());
}
