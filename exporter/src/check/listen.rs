//! Where metrics and health are served.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

use super::report::Check;

const NAME: &str = "listen";

/// Listens there for a moment.
pub(super) fn check(address: Option<SocketAddr>) -> Check {
    let Some(address) = address else {
        return Check::skip(NAME, "no address is set").means("/metrics, /healthz and /readyz are not served");
    };
    let reachable = if address.ip().is_loopback() { "whoever is on this host" } else { "whoever reaches this address" };
    match TcpListener::bind(address) {
        Ok(_) => Check::ok(NAME, format!("{address} is free"))
            .means(format!("{reachable} can read /metrics, /healthz and /readyz, without TLS")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Check::warn(NAME, format!("{address} is in use"))
            .means("all is well if that is Namespan, which runs already; else it does not start")
            .remedy("choose another port with `listen` or --listen, if that is another program's"),
        Err(error) => Check::fail(NAME, format!("{address}: {error}"))
            .means("Namespan does not start")
            .remedy("give `listen` or --listen an address of this host, and a port from 1024 on unless run as root"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Status;
    use super::*;

    #[test]
    fn an_address_is_free_in_use_or_not_ours() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let of_documentation = "192.0.2.1:0".parse().unwrap();
        let cases = [
            (None, Status::Skip),
            (Some("127.0.0.1:0".parse().unwrap()), Status::Ok),
            (Some(taken.local_addr().unwrap()), Status::Warn),
            (Some(of_documentation), Status::Fail),
        ];
        for (address, status) in cases {
            assert_eq!(check(address).status, status, "{address:?}");
        }
    }
}
