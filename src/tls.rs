//! Explanations of TLS errors, for the logs of both servers.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use rustls::{AlertDescription as Alert, CertificateError, Error, InvalidMessage, OtherError};

/// The settings of one server, for advice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TlsSettings {
    /// Such as `UNSTALE_AMQP_TLS_CA`.
    pub ca: &'static str,
    /// Such as `UNSTALE_AMQP_TLS_CERT`.
    pub certificate: &'static str,
    /// Such as `UNSTALE_AMQP_URL`.
    pub url: &'static str,
    /// The scheme of encrypted connections.
    pub encrypted: &'static str,
    /// The scheme of others.
    pub plain: &'static str,
}

/// The settings of RabbitMQ's connections.
pub(crate) const AMQP: TlsSettings = TlsSettings {
    ca: "UNSTALE_AMQP_TLS_CA",
    certificate: "UNSTALE_AMQP_TLS_CERT",
    url: "UNSTALE_AMQP_URL",
    encrypted: "amqps://",
    plain: "amqp://",
};

/// The settings of Redis' connections.
pub(crate) const REDIS: TlsSettings = TlsSettings {
    ca: "UNSTALE_REDIS_TLS_CA",
    certificate: "UNSTALE_REDIS_TLS_CERT",
    url: "UNSTALE_REDIS_URL",
    encrypted: "rediss://",
    plain: "redis://",
};

/// An error of TLS, and what it means for the settings.
#[derive(Debug, thiserror::Error)]
#[error("{meaning}")]
pub(crate) struct TlsProblem {
    meaning: String,
    #[source]
    error: Error,
}

impl TlsSettings {
    /// Explains the error of `rustls` that is in an error or in its causes. `None` if there is
    /// none, or if it does not concern the settings.
    pub(crate) fn explain(&self, error: &(dyn StdError + 'static)) -> Option<TlsProblem> {
        let error = find(error)?;
        Some(TlsProblem { meaning: self.meaning(error)?, error: error.clone() })
    }

    fn meaning(&self, error: &Error) -> Option<String> {
        let Self { ca, certificate, url, encrypted, plain } = self;
        Some(match error {
            // An authority of the same name and another key gives a bad signature.
            Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => format!(
                "no certificate that we trust has signed the server's: set {ca} to the certificate of the authority that did (without it, \
                 the system's are trusted)"
            ),
            Error::InvalidCertificate(CertificateError::Other(OtherError(other)))
                if is_of_authority(&**other) =>
            {
                "the server presents the certificate of an authority as its own: give it one that `openssl req -x509` makes with \
                 `-addext basicConstraints=critical,CA:FALSE`, or one signed by an authority"
                    .to_owned()
            }
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => format!(
                "the server's certificate is for other names than the host in {url}: name the host as the certificate does"
            ),
            Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => {
                "the server's certificate has expired: renew it, or correct the clock here".to_owned()
            }
            Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            ) => "the server's certificate is not valid yet: correct the clock here or there".to_owned(),
            Error::InvalidCertificate(_) => {
                format!("the server's certificate cannot be trusted: check it, and {ca}")
            }
            Error::AlertReceived(Alert::CertificateRequired) => {
                format!("the server asks for a client's certificate: set {certificate}")
            }
            Error::AlertReceived(Alert::CertificateExpired) => {
                format!("the server refuses our certificate as expired: renew what {certificate} holds")
            }
            Error::AlertReceived(
                Alert::UnknownCA
                | Alert::NoCertificate
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateUnknown
                | Alert::CertificateUnobtainable
                | Alert::BadCertificateStatusResponse
                | Alert::BadCertificateHashValue,
            ) => format!(
                "the server refuses our certificate: check {certificate}, and the authorities that the server trusts"
            ),
            Error::AlertReceived(_) | Error::PeerIncompatible(_) => {
                "the server and we have no version or cipher of TLS in common: it needs TLS 1.2 or 1.3"
                    .to_owned()
            }
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => format!(
                "the port does not speak TLS: name another port, or write {plain} instead of {encrypted} in {url}"
            ),
            _ => return None,
        })
    }
}

/// Finds the error of `rustls` in an error and its causes.
///
/// An I/O error does not count the error that it was made of among its causes.
fn find<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e Error> {
    if let Some(found) = error.downcast_ref::<Error>() {
        return Some(found);
    }
    // `redis` shares its cause.
    let shared = error.downcast_ref::<Arc<dyn StdError + Send + Sync>>();
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match (shared, inner) {
        (Some(shared), _) => find(&**shared),
        (_, Some(inner)) => find(inner),
        _ => find(error.source()?),
    }
}

/// Returns whether a verifier refuses a certificate because it is an authority's.
///
/// `rustls` passes on the error of its verifier, `rustls-webpki`.
fn is_of_authority(error: &(dyn StdError + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causes::chain;

    /// Shares its cause, as an error of `redis` does.
    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer {
        source: Arc<dyn StdError + Send + Sync>,
    }

    #[test]
    fn each_error_names_what_to_do() {
        let peer = Error::InvalidCertificate;
        for (error, part) in [
            (peer(CertificateError::UnknownIssuer), "set UNSTALE_AMQP_TLS_CA"),
            (
                peer(CertificateError::NotValidForName),
                "other names than the host in UNSTALE_AMQP_URL",
            ),
            (peer(CertificateError::Expired), "the server's certificate has expired"),
            (peer(CertificateError::NotValidYet), "not valid yet"),
            (peer(CertificateError::BadSignature), "set UNSTALE_AMQP_TLS_CA"),
            (peer(CertificateError::Revoked), "check it, and UNSTALE_AMQP_TLS_CA"),
            (
                peer(CertificateError::Other(OtherError(Arc::new(
                    webpki::Error::CaUsedAsEndEntity,
                )))),
                "the certificate of an authority as its own",
            ),
            (Error::AlertReceived(Alert::CertificateRequired), "set UNSTALE_AMQP_TLS_CERT"),
            (
                Error::AlertReceived(Alert::CertificateExpired),
                "renew what UNSTALE_AMQP_TLS_CERT holds",
            ),
            (Error::AlertReceived(Alert::UnknownCA), "the server refuses our certificate"),
            (Error::AlertReceived(Alert::BadCertificate), "the server refuses our certificate"),
            (Error::AlertReceived(Alert::HandshakeFailure), "TLS 1.2 or 1.3"),
            (
                Error::InvalidMessage(InvalidMessage::InvalidContentType),
                "amqp:// instead of amqps://",
            ),
        ] {
            let wrapped = || io::Error::new(io::ErrorKind::InvalidData, error.clone());
            let in_its_causes = Outer { source: Arc::new(io::Error::other(wrapped())) };
            for outer in [&wrapped() as &(dyn StdError + 'static), &in_its_causes] {
                let explained =
                    AMQP.explain(outer).unwrap_or_else(|| panic!("{error} is not explained"));
                let shown = chain(&explained).to_string();
                assert!(shown.contains(part) && shown.ends_with(&format!(": {error}")), "{shown}");
            }
        }
        let away = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(AMQP.explain(&away).is_none());
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let redis = REDIS.explain(&unknown).unwrap();
        assert!(redis.to_string().contains("UNSTALE_REDIS_TLS_CA"), "{redis}");
    }
}
