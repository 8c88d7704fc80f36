//! TLS with CAs of our own, over HTTP/1.1 and HTTP/2: who is trusted, and whom we say we are.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustix::fs::{FileType, Mode};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::{NamedTempFile, TempDir};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::config::ClientIdentity;

pub(super) const NAMES: [&str; 2] = ["localhost", "collector.test"];
const ALPN: [&str; 2] = ["h2", "http/1.1"];

/// A CA, and its PEM file.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub(super) file: NamedTempFile,
}

struct Leaf {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut ca = CertificateParams::default();
        // Two of one name could not be told apart but by their signatures.
        ca.distinguished_name.push(DnType::CommonName, format!("ca {}", fastrand::u64(..)));
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), issuer.pem()).unwrap();
        Self { issuer, file }
    }

    fn issue(&self, names: &[&str], years: [i32; 2]) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap();
        [params.not_before, params.not_after] = years.map(|year| date_time_ymd(year, 1, 1));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Leaf { certificate, key }
    }

    /// What accepts connections, only from whom `clients` certified if there are such.
    pub(super) fn server(&self, names: &[&str], alpn: &[&str], clients: Option<&Self>) -> TlsAcceptor {
        self.server_with(self.issue(names, [2020, 2100]), alpn, clients)
    }

    fn server_with(&self, Leaf { certificate, key }: Leaf, alpn: &[&str], clients: Option<&Self>) -> TlsAcceptor {
        let provider = Arc::new(ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.issuer.der().clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone(), self.issuer.der().clone()];
        let mut config =
            builder.with_single_cert(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap()).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// PEM files of a client that this one certified.
    fn client(&self) -> (TempDir, ClientIdentity) {
        let dir = tempfile::tempdir().unwrap();
        let identity = ClientIdentity { certificate: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
        self.write(&identity);
        (dir, identity)
    }

    fn write(&self, identity: &ClientIdentity) {
        let Leaf { certificate, key } = self.issue(&["agent.test"], [2020, 2100]);
        std::fs::write(&identity.certificate, certificate.pem()).unwrap();
        std::fs::write(&identity.key, key.serialize_pem()).unwrap();
    }
}

fn ship(collector: &Collector, protocol: Protocol, trusted: &Authority) -> Ship {
    let mut ship = Ship::to(collector.address, protocol);
    ship.export.endpoint.set_scheme("https").unwrap();
    ship.export.endpoint.set_host(Some("localhost")).unwrap();
    ship.export.ca_file = Some(trusted.file.path().into());
    ship
}

/// What the probe says; and that all is lost in time, but nothing sent.
async fn assert_refused(mut ship: Ship, collector: &Collector, expected: &str) {
    let protocol = ship.export.protocol;
    ship.export.retry_max_elapsed = Duration::from_millis(50);
    let error = super::super::probe(&ship.export).await.unwrap_err().to_string();
    assert!(error.contains(expected), "{protocol:?} {expected}: {error}");
    let shipping = ship.start();
    shipping.push(3);
    poll("given up", || shipping.queue.counters().snapshot().dropped_total() == 3).await;
    let Delivery::Losing { reason, .. } = shipping.shipper.state() else { panic!("{:?}", shipping.shipper.state()) };
    assert!(reason.contains(expected), "{protocol:?} {expected}: {reason}");
    assert_eq!(dropped(&shipping.finish().await), [(Reason::RetryExpired, 3)], "{protocol:?}");
    assert_eq!(collector.received().len(), 0);
}

#[tokio::test]
async fn a_collector_certified_by_the_ca_file_is_trusted() {
    for (protocol, alpn) in [
        (Protocol::Grpc, &["h2"][..]),
        (Protocol::HttpProtobuf, &["h2", "http/1.1"]),
        (Protocol::HttpProtobuf, &["http/1.1"]),
        (Protocol::HttpJson, &[]),
    ] {
        let ca = Authority::new();
        let collector = Collector::start_tls(ca.server(&["localhost"], alpn, None), []).await;
        let ship = ship(&collector, protocol, &ca);
        super::super::probe(&ship.export).await.unwrap();
        let shipping = ship.start();
        shipping.push(3);
        assert_eq!(shipping.finish().await.exported, 3, "{protocol:?} {alpn:?}");
        assert_eq!(collector.received().last().unwrap().records(), 3);
    }
}

#[tokio::test]
async fn a_collector_that_is_not_to_be_trusted_gets_nothing() {
    let (ca, other) = (Authority::new(), Authority::new());
    for protocol in PROTOCOLS {
        for (leaf, expected) in [
            (other.issue(&["localhost"], [2020, 2100]), "UnknownIssuer"),
            (ca.issue(&["other.test"], [2020, 2100]), "not valid for name"),
            (ca.issue(&["localhost"], [2020, 2021]), "expired"),
            (ca.issue(&["localhost"], [2099, 2100]), "not valid yet"),
        ] {
            let collector = Collector::start_tls(ca.server_with(leaf, &ALPN, None), []).await;
            assert_refused(ship(&collector, protocol, &ca), &collector, expected).await;
        }
        // Nor is one of which the system knows nothing.
        let collector = Collector::start_tls(ca.server(&["localhost"], &ALPN, None), []).await;
        let mut ship = ship(&collector, protocol, &ca);
        ship.export.ca_file = None;
        assert_refused(ship, &collector, "UnknownIssuer").await;
    }
}

#[tokio::test]
async fn grpc_needs_a_server_that_offers_http_2() {
    let ca = Authority::new();
    let collector = Collector::start_tls(ca.server(&["localhost"], &[], None), []).await;
    assert_refused(ship(&collector, Protocol::Grpc, &ca), &collector, "HTTP/2").await;
}

#[tokio::test]
async fn a_collector_that_asks_who_we_are_is_shown_the_client_certificate() {
    let (ca, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    for protocol in PROTOCOLS {
        let server = || ca.server(&["localhost"], &ALPN, Some(&clients));
        let collector = Collector::start_tls(server(), []).await;
        let (_dir, identity) = clients.client();
        let mut known = ship(&collector, protocol, &ca);
        known.export.client = Some(identity);
        super::super::probe(&known.export).await.unwrap();
        let shipping = known.start();
        shipping.push(3);
        assert_eq!(shipping.finish().await.exported, 3, "{protocol:?}");

        let collector = Collector::start_tls(server(), []).await;
        assert_refused(ship(&collector, protocol, &ca), &collector, "CertificateRequired").await;
        let (_dir, identity) = strangers.client();
        let mut unknown = ship(&collector, protocol, &ca);
        unknown.export.client = Some(identity);
        assert_refused(unknown, &collector, "UnknownCA").await;
    }
}

#[tokio::test]
async fn certificates_that_change_are_read_again_for_the_next_connection() {
    for protocol in PROTOCOLS {
        let logged = Logged::start();
        let [old, new] = [Authority::new(), Authority::new()];
        let server = |of: &Authority| of.server(&["localhost"], &ALPN, Some(of));
        let collector = Collector::start_tls(server(&old), [Answer::GoAway]).await;
        let (_dir, identity) = old.client();
        let mut ship = ship(&collector, protocol, &old);
        ship.export.client = Some(identity.clone());
        ship.pace.max = Duration::from_millis(2);
        let shipping = ship.start();
        shipping.push(1);
        poll("delivered", || shipping.queue.counters().snapshot().exported == 1).await;
        collector.set_tls(server(&new));
        shipping.push(2);
        let retries = || shipping.queue.counters().snapshot().retries;
        let tried = async |what: &str| {
            let before = retries();
            poll(what, || retries() > before + 3).await;
        };
        tried("the new server is not trusted").await;
        // In the middle of a change; and, twice, with a key that is of another certificate.
        std::fs::write(old.file.path(), "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
        tried("half a file").await;
        std::fs::write(old.file.path(), new.issuer.pem()).unwrap();
        for _ in 0..2 {
            let leaf = new.issue(&["agent.test"], [2020, 2100]);
            std::fs::write(&identity.certificate, leaf.certificate.pem()).unwrap();
            tried("certificate without its key").await;
        }
        assert_eq!(shipping.queue.counters().snapshot().exported, 1);
        new.write(&identity);
        poll("delivered", || shipping.queue.counters().snapshot().exported == 3).await;
        assert_eq!(shipping.finish().await.exported, 3, "{protocol:?}");
        let lines = logged.lines();
        let warned = lines.iter().filter(|line| line.contains("changed certificates cannot be used")).count();
        assert!((1..=2).contains(&warned), "{protocol:?} {lines:#?}");
        assert!(lines.iter().any(|line| line.contains("changed certificates are in use")), "{lines:#?}");
    }
}

#[tokio::test]
async fn a_disk_that_does_not_answer_holds_up_the_next_connection_for_a_moment_and_nothing_else() {
    for protocol in PROTOCOLS {
        let ca = Authority::new();
        let server = || ca.server(&["localhost"], &ALPN, None);
        let collector = Collector::start_tls(server(), [Answer::GoAway, Answer::GoAway]).await;
        let shipping = ship(&collector, protocol, &ca).start();
        shipping.push(1);
        poll("delivered", || shipping.queue.counters().snapshot().exported == 1).await;
        // Whoever opens it waits.
        let pipe = ca.file.path();
        std::fs::remove_file(pipe).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for exported in [2, 3] {
            shipping.push(1);
            let began = tokio::time::Instant::now();
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(began.elapsed() < Duration::from_millis(500), "{protocol:?}: everything waits");
            poll("delivered", || shipping.queue.counters().snapshot().exported == exported).await;
        }
        assert_eq!(shipping.finish().await.retries, 0, "{protocol:?}");
        // What waits for it goes on, to the end of the runtime.
        let _writer = std::fs::OpenOptions::new().read(true).write(true).open(pipe).unwrap();
        std::fs::remove_file(pipe).unwrap();
        std::fs::write(pipe, ca.issuer.pem()).unwrap();
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named_with_the_reason_before_anything_is_sent() {
    let (ca, other) = (Authority::new(), Authority::new());
    let (dir, good) = ca.client();
    let (_dir, stranger) = other.client();
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    let empty = file("empty.pem", "nothing");
    let broken = file("broken.pem", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n");
    let no_certificate = file("no-certificate.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let encrypted =
        file("encrypted.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let none = dir.path().join("none.pem");
    let client = |certificate: &std::path::PathBuf, key: &std::path::PathBuf| {
        Some(ClientIdentity { certificate: certificate.clone(), key: key.clone() })
    };
    let trusted = ca.file.path().to_path_buf();
    for (ca_file, client, expected) in [
        (&none, None, "cannot read the CA file /"),
        (&empty, None, "empty.pem: no PEM certificate in it"),
        (&broken, None, "cannot use the CA file"),
        (&no_certificate, None, "no-certificate.pem: invalid peer certificate"),
        (&good.key, None, "key.pem: no PEM certificate in it"),
        (&trusted, client(&none, &good.key), "cannot read the client certificate /"),
        (&trusted, client(&empty, &good.key), "empty.pem: no PEM certificate in it"),
        (&trusted, client(&good.certificate, &none), "cannot read the client key /"),
        (&trusted, client(&good.certificate, &good.certificate), "cert.pem: no PEM private key in it"),
        (&trusted, client(&good.certificate, &encrypted), "encrypted.pem: it is encrypted"),
        (&trusted, client(&good.certificate, &stranger.key), "key.pem: it is not the key of the certificate in /"),
    ] {
        for protocol in PROTOCOLS {
            let mut export = Ship::to("127.0.0.1:1".parse().unwrap(), protocol).export;
            export.endpoint = "https://localhost/".parse().unwrap();
            export.ca_file = Some(ca_file.clone());
            export.client = client.clone();
            let queue = Arc::new(Queue::new(Signal::Logs, config::Queue::default()));
            let error = Idle::at(&export, queue, PACE, direct()).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
            let probed = super::super::probe(&export).await.unwrap_err().to_string();
            assert_eq!(probed, error);
        }
    }
}
