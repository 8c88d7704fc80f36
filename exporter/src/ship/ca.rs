//! The CA file of the settings: read, and checked before anything trusts it.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::ShipError;

/// The file's bytes; they hold at least one certificate.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ShipError> {
    let pem = std::fs::read(path).map_err(|source| ShipError::CaUnreadable { path: path.into(), source })?;
    let mut certificates = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        certificate.map_err(|error| ShipError::CaInvalid { path: path.into(), reason: error.to_string() })?;
        certificates += 1;
    }
    if certificates == 0 {
        return Err(ShipError::CaInvalid { path: path.into(), reason: "no PEM certificate in it".into() });
    }
    Ok(pem)
}
