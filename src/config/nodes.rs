//! Parses server addresses: one URL, several URLs between commas, or one URL with several hosts.

use percent_encoding::percent_decode_str;
use url::Url;

use super::SecretUrl;

const AMQP_EXPECTED: &str =
    "amqp://user:password@host:5672/%2f (or amqps://), nodes of one cluster between commas";
const REDIS_EXPECTED: &str =
    "redis://user:password@host:6379/0 (or rediss://), nodes between commas";

/// Parses the nodes of `UNSTALE_AMQP_URL` (RabbitMQ's "AMQP 0-9-1 URI specification").
pub(super) fn amqp(text: &str) -> Result<Vec<SecretUrl>, String> {
    let urls = nodes(text, &["amqp", "amqps"])
        .map_err(|problem| format!("{problem}: expected {AMQP_EXPECTED}"))?;
    for url in &urls {
        match url.path() {
            // No path means the default virtual host. A single slash would mean one with an empty
            // name.
            "" | "//" => {}
            "/" => return Err("the virtual host after the last / is empty: write /%2f for the default one, or its name".to_owned()),
            path if path[1..].contains('/') => {
                return Err("the virtual host contains a /: write it as %2f, such as amqp://host/%2fname".to_owned());
            }
            path if percent_decode_str(path).decode_utf8().is_err() => return Err("the virtual host is not UTF-8".to_owned()),
            _ => {}
        }
    }
    Ok(urls.into_iter().map(SecretUrl::new).collect())
}

/// Parses the servers of `UNSTALE_REDIS_URL`.
pub(super) fn redis(text: &str) -> Result<Vec<SecretUrl>, String> {
    let urls = nodes(text, &["redis", "rediss"])
        .map_err(|problem| format!("{problem}: expected {REDIS_EXPECTED}"))?;
    for url in &urls {
        let database = url.path().trim_start_matches('/');
        if !database.is_empty() && database.parse::<u32>().is_err() {
            return Err("the database after the last / is not a number: write its number, such as redis://host:6379/0".to_owned());
        }
    }
    Ok(urls.into_iter().map(SecretUrl::new).collect())
}

fn nodes(text: &str, schemes: &[&str]) -> Result<Vec<Url>, &'static str> {
    let mut urls: Vec<Url> = Vec::new();
    if text.contains('#') {
        return Err("contains a #, which ends a URL; in a password, write it as %23");
    }
    for part in split_at_schemes(text, schemes) {
        for node in expand_hosts(part.trim()).ok_or("not a URL")? {
            let url = Url::parse(&node).map_err(|_| "not a URL")?;
            check(&url, schemes)?;
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
    }
    if urls.windows(2).any(|pair| pair[0].scheme() != pair[1].scheme()) {
        return Err("some nodes are encrypted and some are not");
    }
    if urls.is_empty() { Err("not a URL") } else { Ok(urls) }
}

fn check(url: &Url, schemes: &[&str]) -> Result<(), &'static str> {
    if !schemes.contains(&url.scheme()) {
        return Err("the scheme before :// is not supported");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("the host is missing");
    }
    let decodes = |text: &str| percent_decode_str(text).decode_utf8().is_ok();
    if !decodes(url.username()) || !url.password().is_none_or(decodes) {
        return Err(
            "user or password is not UTF-8 after its %-escapes are decoded; write a % as %25",
        );
    }
    Ok(())
}

/// Splits at each comma before a URL. A password may contain commas of its own.
fn split_at_schemes<'t>(text: &'t str, schemes: &[&str]) -> Vec<&'t str> {
    let begins_url = |rest: &str| {
        schemes.iter().any(|scheme| {
            rest.trim_start().strip_prefix(scheme).is_some_and(|rest| rest.starts_with("://"))
        })
    };
    let mut parts = Vec::new();
    let mut from = 0;
    for (comma, _) in text.match_indices(',') {
        if begins_url(&text[comma + 1..]) {
            parts.push(&text[from..comma]);
            from = comma + 1;
        }
    }
    parts.push(&text[from..]);
    parts
}

/// Expands `amqp://user:password@a,b:5673/vhost` into one URL for each host.
fn expand_hosts(text: &str) -> Option<Vec<String>> {
    let (scheme, rest) = text.split_once("://")?;
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, hosts) = match authority.rfind('@') {
        Some(at) => authority.split_at(at + 1),
        None => ("", authority),
    };
    Some(hosts.split(',').map(|host| format!("{scheme}://{user}{}{path}", host.trim())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exposed(read: Result<Vec<SecretUrl>, String>) -> Vec<String> {
        read.unwrap().iter().map(|url| url.expose().to_string()).collect()
    }

    #[test]
    fn urls_and_hosts_between_commas_are_nodes() {
        for (text, urls) in [
            ("amqp://h", vec!["amqp://h"]),
            (
                "amqps://u:p@a:5671/v,amqps://u:p@b:5671/v",
                vec!["amqps://u:p@a:5671/v", "amqps://u:p@b:5671/v"],
            ),
            ("amqp://a/%2f, amqp://b/%2f", vec!["amqp://a/%2f", "amqp://b/%2f"]),
            (
                "amqp://u:p,q@a,b:5673/v?heartbeat=10",
                vec!["amqp://u:p,q@a/v?heartbeat=10", "amqp://u:p,q@b:5673/v?heartbeat=10"],
            ),
            ("amqp://u:p,q@a,amqp://u:p@b", vec!["amqp://u:p,q@a", "amqp://u:p@b"]),
            ("amqp://[::1]:5672//", vec!["amqp://[::1]:5672//"]),
            ("amqp://a,a", vec!["amqp://a"]),
        ] {
            assert_eq!(exposed(amqp(text)), urls, "{text}");
        }
        assert_eq!(
            exposed(redis("redis://:s@a:6379,b/3")),
            ["redis://:s@a:6379/3", "redis://:s@b/3"]
        );
    }

    #[test]
    fn an_invalid_address_is_an_error_that_says_why() {
        for (text, part) in [
            ("", "not a URL"),
            ("localhost:5672", "not a URL"),
            ("http://h", "scheme"),
            ("redis://h", "scheme"),
            ("amqp://", "host is missing"),
            ("amqp://a,,b", "host is missing"),
            ("amqp://u:p#w@h/", "in a password, write it as %23"),
            ("amqp://u:%ff@h", "%25"),
            ("amqp://h:99999", "not a URL"),
            ("amqp://h/", "/%2f"),
            ("amqp://h/a/b", "%2f"),
            ("amqp://a,amqps://b", "some are not"),
        ] {
            let message = amqp(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
        for (text, part) in [
            ("redis://h/x", "not a number"),
            ("unix:///tmp/redis.sock", "scheme"),
            ("amqp://h", "scheme"),
        ] {
            let message = redis(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
