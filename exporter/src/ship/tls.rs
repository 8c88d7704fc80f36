//! TLS by the PEM files of the settings: checked before anything trusts them, and where they have changed since, read again
//! for the next connection.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::ShipError;
use crate::config::{ClientIdentity, Export};
use crate::lock::lock;

pub(super) const HTTP_2: &[u8] = b"h2";
pub(super) const HTTP_1: &[u8] = b"http/1.1";

/// How connections are secured, and what they are secured with.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    /// To be [followed](Files::follow) before each connection.
    pub(super) files: Arc<Files>,
}

/// Trusts the CA file or else the system's certificates, and shows the client certificate to who asks for it.
pub(super) fn config(export: &Export, alpn: &[&[u8]]) -> Result<Tls, ShipError> {
    let provider = Arc::new(ring::default_provider());
    let files = Arc::new(Files::read(export, Arc::clone(&provider))?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ShipError::Endpoint { reason: error.to_string() })?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&files) as _);
    let mut config = match export.client {
        Some(_) => builder.with_client_cert_resolver(Arc::clone(&files) as _),
        None => builder.with_no_client_auth(),
    };
    // A resumed session would be one of the certificates that were there before.
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|&name| name.to_owned()).collect();
    Ok(Tls { config: Arc::new(config), files })
}

/// For endpoints without TLS: trusts nobody, and so needs no certificates in memory.
pub(super) fn unused() -> Result<ClientConfig, ShipError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| ShipError::Endpoint { reason: error.to_string() })?;
    Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// How long a connection waits for a disk to say whether certificates have changed. What it says later is for the next one.
const LOOK: Duration = Duration::from_millis(200);

/// The files, and what was in them when they were last good.
pub(super) struct Files {
    ca: Option<PathBuf>,
    client: Option<ClientIdentity>,
    provider: Arc<CryptoProvider>,
    /// Whose it is looks at the files.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Never held while files are read.
    known: Mutex<Known>,
}

struct Known {
    stamps: Stamps,
    /// Of files that have changed since.
    found: Option<(Stamps, Result<Credentials, ShipError>)>,
    credentials: Credentials,
    warned: bool,
}

struct Credentials {
    verifier: Arc<WebPkiServerVerifier>,
    client: Option<Arc<CertifiedKey>>,
}

/// Device, inode, size, and when it was written: seconds and nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);
/// Of each file; `None`: it is not there.
type Stamps = Vec<Option<Stamp>>;

impl Files {
    fn read(export: &Export, provider: Arc<CryptoProvider>) -> Result<Self, ShipError> {
        let (ca, client) = (export.ca_file.clone(), export.client.clone());
        // Before the files are read: a change in between is seen by the first connection.
        let stamps = stamps(ca.as_deref(), client.as_ref());
        let credentials = Credentials::read(ca.as_deref(), client.as_ref(), &provider)?;
        let known = Mutex::new(Known { stamps, found: None, credentials, warned: false });
        Ok(Self { ca, client, provider, turn: Arc::default(), known })
    }

    /// Looks at the files, for a connection that is about to be made, which happens rarely enough to do so each time. Where
    /// the disk does not answer, what was known stays in use. Within a tokio runtime only.
    pub(super) async fn follow(self: &Arc<Self>) {
        if self.ca.is_none() && self.client.is_none() {
            return;
        }
        let files = Arc::clone(self);
        let look = async move {
            // One at a time, be it that nobody waits for it any more: each may hold a thread for as long as the disk likes.
            let turn = Arc::clone(&files.turn).lock_owned().await;
            let look = move || {
                files.look();
                drop(turn);
            };
            spawn_blocking(look).await
        };
        drop(timeout(LOOK, look).await);
        self.take_up();
    }

    fn look(&self) {
        let stamps = stamps(self.ca.as_deref(), self.client.as_ref());
        let has_changed = stamps != self.known().stamps;
        let read = has_changed.then(|| Credentials::read(self.ca.as_deref(), self.client.as_ref(), &self.provider));
        self.known().found = read.map(|read| (stamps, read));
    }

    /// What was found last, be it too late for the connection that it was looked at for.
    fn take_up(&self) {
        let mut known = self.known();
        let Some((stamps, read)) = known.found.take() else { return };
        known.stamps = stamps;
        match read {
            Ok(credentials) => {
                known.credentials = credentials;
                known.warned = false;
                tracing::info!("changed certificates are in use from the next connection on");
            }
            // Certificate and key are rarely replaced in one step.
            Err(error) if !std::mem::replace(&mut known.warned, true) => {
                let error = super::chain(&error);
                tracing::warn!(error, "changed certificates cannot be used; those before stay in use");
            }
            Err(_) => {}
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }
}

fn stamps(ca: Option<&Path>, client: Option<&ClientIdentity>) -> Stamps {
    let client = client.into_iter().flat_map(|client| [client.certificate.as_path(), client.key.as_path()]);
    ca.into_iter().chain(client).map(stamp).collect()
}

/// `None`: not there.
fn stamp(path: &Path) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

impl Credentials {
    fn read(
        ca: Option<&Path>,
        client: Option<&ClientIdentity>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, ShipError> {
        let (roots, whose) = match ca {
            Some(path) => (of_file(path)?, path),
            None => (of_system()?, Path::new("of the system")),
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|error| invalid(CA, whose, error.to_string()))?;
        let client = client.map(|client| identity(client, provider)).transpose()?;
        Ok(Self { verifier, client })
    }
}

const CA: &str = "CA file";
const CERTIFICATE: &str = "client certificate";
const KEY: &str = "client key";

fn of_file(path: &Path) -> Result<RootCertStore, ShipError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(CA, path)? {
        roots.add(certificate).map_err(|error| invalid(CA, path, error.to_string()))?;
    }
    Ok(roots)
}

/// As the system has them: one that is broken should not keep the others from use.
fn of_system() -> Result<RootCertStore, ShipError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "a CA certificate of the system cannot be read");
    }
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let reason = "https needs CA certificates, and the system has none: install ca-certificates, or name a CA file";
        return Err(ShipError::Endpoint { reason: reason.into() });
    }
    Ok(roots)
}

fn identity(client: &ClientIdentity, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, ShipError> {
    let ClientIdentity { certificate, key: path } = client;
    let chain = certificates(CERTIFICATE, certificate)?;
    let pem = read(KEY, path)?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        let reason = if pem.windows(ENCRYPTED.len()).any(|part| part == ENCRYPTED) {
            "it is encrypted; give one without a passphrase".into()
        } else if matches!(error, rustls::pki_types::pem::Error::NoItemsFound) {
            "no PEM private key in it".into()
        } else {
            error.to_string()
        };
        invalid(KEY, path, reason)
    })?;
    let pair = CertifiedKey::from_der(chain, key, provider).map_err(|error| {
        let reason = if matches!(error, rustls::Error::InconsistentKeys(_)) {
            format!("it is not the key of the certificate in {}", certificate.display())
        } else {
            error.to_string()
        };
        invalid(KEY, path, reason)
    })?;
    Ok(Arc::new(pair))
}

const ENCRYPTED: &[u8] = b"ENCRYPTED";

/// At least one.
fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ShipError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(&read(what, path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(what, path, error.to_string()))?;
    if found.is_empty() { Err(invalid(what, path, "no PEM certificate in it".into())) } else { Ok(found) }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, ShipError> {
    fs::read(path).map_err(|source| ShipError::Unreadable { what, path: path.into(), source })
}

fn invalid(what: &'static str, path: &Path, reason: String) -> ShipError {
    ShipError::Invalid { what, path: path.into(), reason }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").field("ca", &self.ca).field("client", &self.client).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Files {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verifier = Arc::clone(&self.known().credentials.verifier);
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ResolvesClientCert for Files {
    fn resolve(&self, _root_hint_subjects: &[&[u8]], _sigschemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.known().credentials.client.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
