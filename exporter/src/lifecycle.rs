//! What systemd is told of us, where it has started us and wants to know; otherwise nothing at all.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The service manager's ear. No word to it ever waits.
#[derive(Debug, Default)]
pub struct Lifecycle {
    socket: Option<UnixDatagram>,
    /// How often it wants to hear that we go on.
    watchdog: Option<Duration>,
    heard: Option<Instant>,
    status: String,
}

impl Lifecycle {
    /// By `NOTIFY_SOCKET` and `WATCHDOG_USEC`, as systemd sets them.
    #[must_use]
    pub fn of_environment() -> Self {
        let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        match Self::to(&address, sd_notify::watchdog_enabled()) {
            Ok(lifecycle) => lifecycle,
            Err(error) => {
                tracing::warn!(?address, %error, "systemd can't be told how we do: NOTIFY_SOCKET can't be reached");
                Self::default()
            }
        }
    }

    /// A path, or a name with `@` in front.
    fn to(address: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        match address.as_bytes().strip_prefix(b"@") {
            Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
            None => socket.connect(address)?,
        }
        Ok(Self { socket: Some(socket), watchdog: watchdog.filter(|every| !every.is_zero()), ..Self::default() })
    }

    /// Watching, for the first time or again after [`reloading`](Self::reloading).
    pub fn ready(&mut self, status: &str) {
        status.clone_into(&mut self.status);
        self.tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The settings are read anew; [`ready`](Self::ready) ends it, whatever came of it.
    pub fn reloading(&self) {
        let Ok(now) = NotifyState::monotonic_usec_now() else { return };
        self.tell(&[NotifyState::Reloading, now]);
    }

    /// Nothing is watched any more; what is left is drained.
    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
    }

    /// How we do, in a line; told when it changes.
    pub fn status(&mut self, status: &str) {
        if self.socket.is_some() && self.status != status {
            status.clone_into(&mut self.status);
            self.tell(&[NotifyState::Status(status)]);
        }
    }

    /// The loop that calls it goes on. Twice as often as is asked for.
    pub fn alive(&mut self, now: Instant) {
        let Some(every) = self.watchdog else { return };
        if self.heard.is_none_or(|heard| now.saturating_duration_since(heard) >= every / 2) {
            self.heard = Some(now);
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else { return };
        // A line each, whatever stands in a status.
        let line = |state| format!("{state}").replace(char::is_control, " ") + "\n";
        let message: String = states.iter().map(line).collect();
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::warn!(%error, "systemd can't be told how we do");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        let len = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }

    fn hears_nothing(socket: &UnixDatagram) {
        socket.set_nonblocking(true).unwrap();
        assert_eq!(socket.recv(&mut [0; 16]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        socket.set_nonblocking(false).unwrap();
    }

    #[test]
    fn systemd_hears_of_every_step() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("namespan-{}", path.display());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let sockets = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (format!("@{name}").into(), UnixDatagram::bind_addr(&abstract_name).unwrap()),
        ];
        for (address, socket) in sockets {
            let mut lifecycle = Lifecycle::to(&address, Some(Duration::from_secs(10))).unwrap();
            lifecycle.ready("watching");
            assert_eq!(heard(&socket), "READY=1\nSTATUS=watching\n");
            lifecycle.status("watching");
            hears_nothing(&socket);
            lifecycle.status("not delivering\nREADY=1");
            assert_eq!(heard(&socket), "STATUS=not delivering READY=1\n");
            let now = Instant::now();
            lifecycle.alive(now);
            assert_eq!(heard(&socket), "WATCHDOG=1\n");
            lifecycle.alive(now + Duration::from_millis(4_999));
            hears_nothing(&socket);
            lifecycle.alive(now + Duration::from_secs(5));
            assert_eq!(heard(&socket), "WATCHDOG=1\n");
            let before = monotonic_usec();
            lifecycle.reloading();
            let reloading = heard(&socket);
            let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim().parse().unwrap();
            assert!((before..=monotonic_usec()).contains(&usec), "{reloading}");
            lifecycle.stopping();
            assert_eq!(heard(&socket), "STOPPING=1\nSTATUS=draining\n");
        }
    }

    fn monotonic_usec() -> i64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
    }

    #[test]
    fn nobody_is_told_where_nobody_asks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut unwatched = Lifecycle::to(path.as_os_str(), None).unwrap();
        unwatched.alive(Instant::now());
        hears_nothing(&socket);
        let mut nobody = Lifecycle::default();
        nobody.ready("watching");
        nobody.alive(Instant::now());
        nobody.stopping();
        assert!(Lifecycle::to(OsStr::new("/nowhere/at/all"), None).is_err());
    }

    #[test]
    fn a_service_manager_that_does_not_listen_holds_up_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let _deaf = UnixDatagram::bind(&path).unwrap();
        let lifecycle = Lifecycle::to(path.as_os_str(), None).unwrap();
        // More than any socket's buffer takes.
        for _ in 0..20_000 {
            lifecycle.stopping();
        }
    }
}
