//! Formats `idn-hostname` and `idn-email`, which the library supports only with large tables.

use url::Host;

/// Maximum length of a host name: 253 ASCII characters, which are fewer in other scripts.
const MAX_HOST_CHARS: usize = 253;

/// Maximum length of the part before the `@`, in bytes (RFC 5321, section 4.5.3.1.1).
const MAX_LOCAL_BYTES: usize = 64;

/// Returns whether a text is a host name in any script (RFC 5890).
pub(super) fn is_idn_hostname(text: &str) -> bool {
    let is_short = text.len() <= 4 * MAX_HOST_CHARS && text.chars().count() <= MAX_HOST_CHARS;
    let has_no_port = !text.contains([':', '%', '[', '/', '@', '?', '#']) && !text.ends_with('.');
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && !label.contains('_')
    };
    is_short
        && has_no_port
        && text.split('.').all(is_label)
        && matches!(Host::parse(text), Ok(Host::Domain(ascii)) if ascii.len() <= MAX_HOST_CHARS)
}

/// Returns whether a text is an e-mail address in any script (RFC 6531).
pub(super) fn is_idn_email(text: &str) -> bool {
    let Some((local, host)) = text.rsplit_once('@') else { return false };
    let is_atom = |atom: &str| {
        !atom.is_empty()
            && !atom.contains(|c: char| {
                c.is_whitespace() || c.is_control() || "\"(),:;<>@[\\]".contains(c)
            })
    };
    local.len() <= MAX_LOCAL_BYTES && local.split('.').all(is_atom) && is_idn_hostname(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn international_host_names_and_email_addresses_are_recognized() {
        for (text, expected) in [
            ("example.com", true),
            ("localhost", true),
            ("실례.테스트", true),
            ("bücher.example", true),
            ("xn--bcher-kva.example", true),
            ("-a.example", false),
            ("a..b", false),
            ("a_b.example", false),
            ("example.com:80", false),
            ("", false),
        ] {
            assert_eq!(is_idn_hostname(text), expected, "{text}");
            assert_eq!(is_idn_email(&format!("실례@{text}")), expected, "{text}");
        }
        for text in [
            "실례",
            "@example.com",
            "a b@example.com",
            ".a@example.com",
            "a@b@example.com",
            &format!("{}@a.example", "é".repeat(33)),
        ] {
            assert!(!is_idn_email(text), "{text}");
        }
        assert!(!is_idn_hostname(&"a.".repeat(500_000)));
    }
}
