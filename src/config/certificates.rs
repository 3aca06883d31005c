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
            Err(_) if is_version_1(own) => Err(VERSION_1_CERTIFICATE),
            Err(_) => Err(UNREADABLE_CERTIFICATE),
        }
    })
}

/// Returns whether a certificate has version 1. Versions 2 and 3 have a version field, `[0]`, in
/// front of the serial number (RFC 5280, section 4.1).
fn is_version_1(der: &[u8]) -> bool {
    let signed_part = content_of_sequence(der).and_then(content_of_sequence);
    signed_part.is_some_and(|fields| fields.first() == Some(&DER_INTEGER))
}

/// Returns what follows the header of a DER sequence.
fn content_of_sequence(der: &[u8]) -> Option<&[u8]> {
    let [tag, length, rest @ ..] = der else { return None };
    let length_bytes = if *length < 0x80 { 0 } else { usize::from(length & 0x7f) };
    (*tag == DER_SEQUENCE).then(|| rest.get(length_bytes..)).flatten()
}

const DER_INTEGER: u8 = 0x02;
const DER_SEQUENCE: u8 = 0x30;

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
const VERSION_1_CERTIFICATE: &str = "holds an X.509 certificate of version 1, and TLS needs version 3: sign it again with an \
     extension, such as `openssl x509 -req -extfile FILE` where FILE holds `basicConstraints=CA:FALSE`";
const UNREADABLE_KEY: &str = "contains no readable private key: expected PEM text of one unencrypted key (RSA, ECDSA with P-256 or P-384, Ed25519)";

fn read_certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let read = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| UNREADABLE_CERTIFICATE)?;
    if read.is_empty() { Err(UNREADABLE_CERTIFICATE) } else { Ok(read) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Self-signed certificate of version 1: `openssl x509 -req` without `-extfile`.
    const VERSION_1: &str = "\
-----BEGIN CERTIFICATE-----
MIIBHTCBxQIULnax1/MM3+Cv5g3owJ8D9zHg00QwCgYIKoZIzj0EAwIwETEPMA0G
A1UEAwwGY2xpZW50MCAXDTI2MTEzMDEyMjgxMloYDzIxMjYxMTA2MTIyODEyWjAR
MQ8wDQYDVQQDDAZjbGllbnQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATr8JIx
pd3JYGkhcQ6YiN7LqkJNYKbcaUssUpKfQQVJ7e6gUCe5BOQNFIPkAJPErmZJybkU
xTxRI5655y22f6oTMAoGCCqGSM49BAMCA0cAMEQCIFnDHjPbANFQHb+w+HrmEbSu
3vJkLHST58RYtC86GMIeAiBtaNtXNqRqYBtTgT7S1jAeEooY39Fkk6wWQEsvt4VW
rA==
-----END CERTIFICATE-----";

    #[test]
    fn a_certificate_of_version_1_is_named_as_such() {
        let why = check_certificate(VERSION_1).unwrap_err();
        assert!(why.contains("version 1") && why.contains("-extfile"), "{why}");
        let chain = VERSION_1.replace("CERTIFICATE", "PUBLIC KEY");
        assert_eq!(check_certificate(&chain).unwrap_err(), UNREADABLE_CERTIFICATE);
    }
}
