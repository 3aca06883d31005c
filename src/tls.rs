//! Explanations of TLS errors, for the logs of both servers.

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

impl TlsSettings {
    /// Explains an error of `rustls`, given as text: the libraries in between keep nothing else of
    /// it. `None` where it is another error.
    pub(crate) fn explain(&self, error: &str) -> Option<String> {
        let Self { ca, certificate, url, encrypted, plain } = self;
        let has = |sign: &str| error.contains(sign);
        // An authority of the same name and another key gives a bad signature.
        let meaning = if has("UnknownIssuer") || has("invalid peer certificate: BadSignature") {
            format!(
                "no certificate that we trust has signed the server's: set {ca} to the certificate of the authority that did (without it, \
                 the system's are trusted)"
            )
        } else if has("CaUsedAsEndEntity") {
            "the server presents the certificate of an authority as its own: give it one that `openssl req -x509` makes with \
             `-addext basicConstraints=critical,CA:FALSE`, or one signed by an authority"
                .to_owned()
        } else if has("not valid for name") || has("NotValidForName") {
            format!(
                "the server's certificate is for other names than the host in {url}: name the host as the certificate does"
            )
        } else if has("certificate expired") || has("invalid peer certificate: Expired") {
            "the server's certificate has expired: renew it, or correct the clock here".to_owned()
        } else if has("not valid yet") || has("NotValidYet") {
            "the server's certificate is not valid yet: correct the clock here or there".to_owned()
        } else if has("invalid peer certificate") {
            format!("the server's certificate cannot be trusted: check it, and {ca}")
        } else if has("CertificateRequired") {
            format!("the server asks for a client's certificate: set {certificate}")
        } else if has("received fatal alert: CertificateExpired") {
            format!("the server refuses our certificate as expired: renew what {certificate} holds")
        } else if has("received fatal alert") && (has("UnknownCA") || has("Certificate")) {
            format!(
                "the server refuses our certificate: check {certificate}, and the authorities that the server trusts"
            )
        } else if has("InvalidContentType") || has("invalid content type") {
            format!(
                "the port does not speak TLS: name another port, or write {plain} instead of {encrypted} in {url}"
            )
        } else if has("received fatal alert") || has("peer is incompatible") {
            "the server and we have no version or cipher of TLS in common: it needs TLS 1.2 or 1.3"
                .to_owned()
        } else {
            return None;
        };
        Some(format!("{meaning} ({error})"))
    }
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

    use super::*;

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
                Error::AlertReceived(AlertDescription::CertificateRequired),
                "set UNSTALE_AMQP_TLS_CERT",
            ),
            (
                Error::AlertReceived(AlertDescription::CertificateExpired),
                "renew what UNSTALE_AMQP_TLS_CERT holds",
            ),
            (
                Error::AlertReceived(AlertDescription::UnknownCA),
                "the server refuses our certificate",
            ),
            (
                Error::AlertReceived(AlertDescription::BadCertificate),
                "the server refuses our certificate",
            ),
            (Error::AlertReceived(AlertDescription::HandshakeFailure), "TLS 1.2 or 1.3"),
            (
                Error::InvalidMessage(InvalidMessage::InvalidContentType),
                "amqp:// instead of amqps://",
            ),
        ] {
            let text = error.to_string();
            let explained =
                AMQP.explain(&text).unwrap_or_else(|| panic!("{text} is not explained"));
            assert!(
                explained.contains(part) && explained.ends_with(&format!("({text})")),
                "{explained}"
            );
        }
        assert_eq!(AMQP.explain("connection refused"), None);
        assert!(
            REDIS
                .explain("invalid peer certificate: UnknownIssuer")
                .unwrap()
                .contains("UNSTALE_REDIS_TLS_CA")
        );
    }
}
