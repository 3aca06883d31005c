//! Checks of certificates and keys at start. Some of them can never make a connection.
//!
//! Messages contain no text of a library. A library may quote its input, which may be a private key
//! in the wrong setting.

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};

/// Checks certificates to trust. At least one of them must be usable for checking a server's
/// certificate.
pub(super) fn check_roots(pem: &str) -> Result<(), &'static str> {
    let (usable, _) = RootCertStore::empty().add_parsable_certificates(read_certificates(pem)?);
    if usable == 0 { Err(UNREADABLE_CERTIFICATE) } else { Ok(()) }
}

/// Checks a client's certificate with its chain.
pub(super) fn check_certificate(pem: &str) -> Result<(), &'static str> {
    let chain = read_certificates(pem)?;
    // The first certificate is the client's own.
    chain.first().map_or(Err(UNREADABLE_CERTIFICATE), |own| {
        match ParsedCertificate::try_from(own) {
            Ok(_) => Ok(()),
            Err(_) => Err(UNREADABLE_CERTIFICATE),
        }
    })
}

/// Checks a private key.
pub(super) fn check_key(pem: &str) -> Result<(), &'static str> {
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| UNREADABLE_KEY)?;
    ring::sign::any_supported_type(&key).map(drop).map_err(|_| UNREADABLE_KEY)
}

/// Returns whether the key belongs to the certificate. `false` only if both are readable and
/// differ.
pub(super) fn belong_together(certificate_pem: &str, key_pem: &str) -> bool {
    let (Ok(chain), Ok(key)) =
        (read_certificates(certificate_pem), PrivateKeyDer::from_pem_slice(key_pem.as_bytes()))
    else {
        return true;
    };
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider());
    !matches!(certified, Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)))
}

const UNREADABLE_CERTIFICATE: &str =
    "contains no readable certificate: expected PEM text of X.509 certificates";
const UNREADABLE_KEY: &str = "contains no readable private key: expected PEM text of one unencrypted key (RSA, ECDSA with P-256 or P-384, Ed25519)";

fn read_certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let read = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| UNREADABLE_CERTIFICATE)?;
    if read.is_empty() { Err(UNREADABLE_CERTIFICATE) } else { Ok(read) }
}
