//! TLS with a CA of our own, over HTTP/1.1 and HTTP/2.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tempfile::NamedTempFile;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A CA's PEM file, and a server whose certificate for `localhost` it signed.
fn certified(alpn: &[&str]) -> (NamedTempFile, TlsAcceptor) {
    super::super::install_crypto();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["localhost".into()]).unwrap().signed_by(&key, &ca).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key).unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), ca.pem()).unwrap();
    (file, TlsAcceptor::from(Arc::new(config)))
}

fn ship(collector: &Collector, protocol: Protocol, ca: &NamedTempFile) -> Ship {
    let mut ship = Ship::to(collector.address, protocol);
    ship.export.endpoint.set_scheme("https").unwrap();
    ship.export.endpoint.set_host(Some("localhost")).unwrap();
    ship.export.ca_file = Some(ca.path().into());
    ship
}

#[tokio::test]
async fn a_collector_certified_by_the_ca_file_is_trusted() {
    for (protocol, alpn) in [
        (Protocol::Grpc, &["h2"][..]),
        (Protocol::HttpProtobuf, &["h2", "http/1.1"]),
        (Protocol::HttpProtobuf, &["http/1.1"]),
        (Protocol::HttpJson, &[]),
    ] {
        let (ca, tls) = certified(alpn);
        let collector = Collector::start_tls(tls).await;
        let ship = ship(&collector, protocol, &ca);
        super::super::probe(&ship.export).await.unwrap();
        let shipping = ship.start();
        shipping.push(3);
        assert_eq!(shipping.finish().await.exported, 3, "{protocol:?} {alpn:?}");
        assert_eq!(collector.received().last().unwrap().records(), 3);
    }
}

#[tokio::test]
async fn a_collector_certified_by_another_gets_nothing() {
    for protocol in PROTOCOLS {
        let (_, tls) = certified(&["h2", "http/1.1"]);
        let (other, _) = certified(&[]);
        let collector = Collector::start_tls(tls).await;
        let mut ship = ship(&collector, protocol, &other);
        ship.export.retry_max_elapsed = Duration::ZERO;
        let error = super::super::probe(&ship.export).await.unwrap_err().to_string();
        assert!(error.contains("certificate"), "{error}");
        let shipping = ship.start();
        shipping.push(3);
        assert_eq!(dropped(&shipping.finish().await), [(Reason::RetryExpired, 3)], "{protocol:?}");
        assert_eq!(collector.received().len(), 0);
    }
}
