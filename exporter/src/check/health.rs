//! `namespan health`: where a Namespan listens comes in; what it says of itself goes out, for whoever restarts or watches it.

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use thiserror::Error;

/// For all of the question: what asks for our health gives up on us soon as well.
const PATIENCE: Duration = Duration::from_secs(4);
/// Of an answer. Ours is a line for each destination and runtime that has a trouble.
const BYTES: u64 = 64 << 10;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum HealthError {
    #[error(
        "`listen` is not set, so that nothing can be asked: give `listen` in the file of --config, or --listen, as to \
         the `namespan run` that is meant"
    )]
    NotServed,
    #[error("{0}: the kernel chose the port, and it is not known here: give `listen` or --listen one")]
    AnyPort(SocketAddr),
    #[error("{address} does not answer: is a `namespan run` with this `listen` there, in this network namespace?")]
    Unanswered { address: SocketAddr, source: io::Error },
    #[error("{0} gives no answer of Namespan's: another program listens there")]
    Foreign(SocketAddr),
}

/// What a Namespan says of itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Health {
    pub is_well: bool,
    /// A line for each thing that is to be said, without control characters.
    pub text: String,
}

/// Asks the Namespan that listens there: whether it is alive at all, or else whether it also attributes and delivers.
pub fn ask(address: Option<SocketAddr>, alive_only: bool) -> Result<Health, HealthError> {
    let address = to_connect(address.ok_or(HealthError::NotServed)?)?;
    let path = if alive_only { "/healthz" } else { "/readyz" };
    let answer = exchange(address, path).map_err(|source| HealthError::Unanswered { address, source })?;
    parse(&answer).ok_or(HealthError::Foreign(address))
}

/// What listens on every address is reached on this host.
fn to_connect(mut address: SocketAddr) -> Result<SocketAddr, HealthError> {
    if address.port() == 0 {
        return Err(HealthError::AnyPort(address));
    }
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(address)
}

/// All that is answered before the connection ends, within bounds.
fn exchange(address: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    let left = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let mut stream = TcpStream::connect_timeout(&address, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    // In one piece, which whoever is there reads whole before it answers.
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    let mut bounded = stream.try_clone()?.take(BYTES);
    loop {
        stream.set_read_timeout(Some(left()?))?;
        match bounded.read(&mut piece) {
            Ok(0) => return Ok(answer),
            Ok(read) => answer.extend_from_slice(piece.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// `None`: neither 200 nor 503, which are all that ours answers.
fn parse(answer: &[u8]) -> Option<Health> {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut words = head.strip_prefix("HTTP/1.")?.split(' ').skip(1);
    let is_well = match words.next()?.trim_end() {
        "200" => true,
        "503" => false,
        _ => return None,
    };
    let mut text = String::new();
    for line in body.lines() {
        let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        // Into a String: cannot fail.
        writeln!(text, "{line}").ok();
    }
    Some(Health { is_well, text })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Answers one client so, whatever it asks; what it asked comes back.
    fn answering(answer: &'static [u8]) -> (SocketAddr, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = vec![0; 1024];
            let read = stream.read(&mut question).unwrap();
            question.truncate(read);
            // It may have heard enough.
            stream.write_all(answer).ok();
            String::from_utf8(question).unwrap()
        });
        (address, asked)
    }

    #[test]
    fn it_is_well_at_200_and_unwell_with_the_reasons_at_503() {
        let (address, asked) = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n");
        let health = ask(Some(address), false).unwrap();
        assert_eq!(health, Health { is_well: true, text: "ready\n".to_owned() });
        assert!(asked.join().unwrap().starts_with("GET /readyz HTTP/1.1\r\n"));

        let (address, asked) = answering(b"HTTP/1.1 503 Service Unavailable\r\n\r\nnot alive: \x1b[2J\nx");
        let health = ask(Some(address), true).unwrap();
        assert_eq!(health, Health { is_well: false, text: "not alive:  [2J\nx\n".to_owned() });
        assert!(asked.join().unwrap().starts_with("GET /healthz HTTP/1.1\r\n"));
    }

    #[test]
    fn what_is_not_namespan_is_said_to_be_another_program() {
        for foreign in [&b"SSH-2.0-x\r\n\r\n"[..], b"", b"HTTP/1.1 404 Not Found\r\n\r\n", b"HTTP/1.1 200 OK\r\n"] {
            let (address, _asked) = answering(foreign);
            assert!(matches!(ask(Some(address), false), Err(HealthError::Foreign(_))), "{foreign:?}");
        }
        // More than is read.
        let (address, _asked) = answering("x".repeat(256 << 10).leak().as_bytes());
        assert!(matches!(ask(Some(address), false), Err(HealthError::Foreign(_) | HealthError::Unanswered { .. })));
    }

    #[test]
    fn where_nobody_can_be_asked_the_reason_names_the_setting() {
        assert!(ask(None, false).unwrap_err().to_string().contains("`listen` is not set"));
        let any = ask(Some("127.0.0.1:0".parse().unwrap()), false).unwrap_err();
        assert!(matches!(any, HealthError::AnyPort(_)), "{any}");
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(ask(Some(gone), false), Err(HealthError::Unanswered { .. })));
    }

    #[test]
    fn every_address_is_asked_on_this_host() {
        for (listen, asked) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("192.0.2.1:1", "192.0.2.1:1")] {
            assert_eq!(to_connect(listen.parse().unwrap()).unwrap(), asked.parse().unwrap());
        }
    }
}
