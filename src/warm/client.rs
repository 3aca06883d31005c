//! One loader as an HTTP client sees it: its address, its headers, and the request made of them.

use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{CONTROLS, utf8_percent_encode};
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, redirect};
use url::Url;

use super::answer;
use super::breaker::{Breaker, Health};
use super::limits::LoaderLimits;
use super::{LoadContext, LoadError, Loaded, LoaderProblem};
use crate::config::WarmConfig;
use crate::quantity::format_duration;
use crate::registry::Loader;

const USER_AGENT: &str = concat!("unstale/", env!("CARGO_PKG_VERSION"));

/// The longest `unstale-event-id` sent: servers commonly refuse more than 8 KiB of headers in all,
/// and an id is the publisher's choice.
const MAX_EVENT_ID_BYTES: usize = 1024;

/// One loader of the registry.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) name: String,
    base: Url,
    headers: HeaderMap,
    pub(super) timeout: Duration,
    max_bytes: usize,
    pub(super) limits: Arc<LoaderLimits>,
    pub(super) breaker: Arc<Breaker>,
}

impl Endpoint {
    /// `old` are the endpoints of the registry before: limits that stayed the same carry over, and
    /// what is known of an address.
    pub(super) fn new(
        config: &WarmConfig,
        loader: &Loader,
        old: &[Self],
    ) -> Result<Self, Vec<LoaderProblem>> {
        let name = loader.name.clone();
        let base = Url::parse(&loader.url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let mut problems = Vec::new();
        if base.is_none() {
            problems.push(LoaderProblem::Url { loader: name.clone() });
        }
        let mut headers = HeaderMap::with_capacity(loader.headers.0.len() + 3);
        // Any coding is welcome to a server that is told of none (RFC 9110, section 12.5.3), and
        // the body is cached as it comes.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        for (header, value) in &loader.headers.0 {
            match (HeaderName::try_from(header), HeaderValue::try_from(value)) {
                (Ok(header), Ok(mut value)) => {
                    value.set_sensitive(true);
                    headers.insert(header, value);
                }
                _ => problems
                    .push(LoaderProblem::Header { loader: name.clone(), header: header.clone() }),
            }
        }
        let base = match base {
            Some(base) if problems.is_empty() => base,
            _ => return Err(problems),
        };
        let limits = old
            .iter()
            .find(|endpoint| {
                endpoint.name == name && endpoint.limits.are(loader.concurrency, loader.rate)
            })
            .map_or_else(
                || Arc::new(LoaderLimits::new(loader.concurrency, loader.rate)),
                |endpoint| Arc::clone(&endpoint.limits),
            );
        let known = old.iter().find(|endpoint| endpoint.name == name && endpoint.base == base);
        let breaker = known.map(|endpoint| Arc::clone(&endpoint.breaker)).unwrap_or_default();
        Ok(Self {
            name,
            base,
            headers,
            timeout: loader.timeout.unwrap_or(config.timeout),
            max_bytes: loader.max_bytes.unwrap_or(config.max_bytes),
            limits,
            breaker,
        })
    }

    pub(super) fn standing(&self) -> (&str, bool) {
        (&self.name, self.breaker.is_open())
    }

    pub(super) fn uses_tls(&self) -> bool {
        self.base.scheme() == "https"
    }

    /// Reads a URL and makes sure that it stays with this loader, whose headers may be secrets: the
    /// registry builds such URLs alone, this is the second lock on the same door.
    pub(super) fn check(&self, url: &str) -> Result<Url, LoadError> {
        let refused =
            |what: &str| LoadError::Refused { message: format!("loader `{}`: {what}", self.name) };
        let url = Url::parse(url).map_err(|_| refused("the URL made for this event is none"))?;
        let beneath = url.path().strip_prefix(self.base.path().trim_end_matches('/'));
        if url.origin() != self.base.origin()
            || !beneath.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        {
            return Err(refused("the URL made for this event leaves the loader's host or path"));
        }
        Ok(url)
    }

    /// Loads, and says what that shows of the loader's health.
    pub(super) async fn get(
        &self,
        client: &Client,
        url: Url,
        context: &LoadContext<'_>,
    ) -> (Result<Loaded, LoadError>, Health) {
        let resource = foldhash::fast::FixedState::default().hash_one((url.path(), url.query()));
        let mut headers = self.headers.clone();
        if let Some(id) = event_id(context.event_id) {
            headers.insert("unstale-event-id", id);
        }
        if let Some(traceparent) = context.traceparent.and_then(traceparent) {
            headers.insert("traceparent", traceparent);
        }
        let load = async {
            let answer = match client.get(url).headers(headers).send().await {
                Ok(answer) => answer,
                Err(error) => {
                    return health(Err(answer::unanswered(&self.name, &error)), Health::Bad);
                }
            };
            // An event chooses the resource, and some resource always fails. Asking for less of
            // everything (429) concerns the loader.
            let if_failed = if answer.status().is_client_error() {
                Health::Bad
            } else {
                Health::Failing { resource }
            };
            health(answer::read(&self.name, answer, self.max_bytes).await, if_failed)
        };
        tokio::time::timeout(self.timeout, load).await.unwrap_or_else(|_| {
            let message = format!(
                "loader `{}` gave no whole answer within {}",
                self.name,
                format_duration(self.timeout)
            );
            (Err(LoadError::Retry { after: None, message }), Health::Bad)
        })
    }
}

/// A load that is worth another try has failed; any other was answered.
fn health(
    loaded: Result<Loaded, LoadError>,
    if_failed: Health,
) -> (Result<Loaded, LoadError>, Health) {
    let health =
        if matches!(loaded, Err(LoadError::Retry { .. })) { if_failed } else { Health::Good };
    (loaded, health)
}

/// The client of all loaders. Without `tls` it trusts no certificate, so that `http` works on a
/// system that has none.
pub(super) fn client(config: &WarmConfig, tls: bool) -> Result<Client, LoaderProblem> {
    // Fails where another part of the process was first, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = Client::builder()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .pool_max_idle_per_host(config.concurrency);
    let builder = if tls { builder } else { builder.tls_certs_only([]) };
    builder.build().map_err(|error| LoaderProblem::Client { cause: answer::innermost(&error) })
}

/// The id as a header may carry it: control and non-ASCII characters percent-encoded, at most
/// [`MAX_EVENT_ID_BYTES`] of that.
fn event_id(id: &str) -> Option<HeaderValue> {
    let mut text = utf8_percent_encode(id, CONTROLS).to_string();
    if text.len() > MAX_EVENT_ID_BYTES {
        let tail = MAX_EVENT_ID_BYTES - "%X".len();
        let end =
            text[tail..MAX_EVENT_ID_BYTES].find('%').map_or(MAX_EVENT_ID_BYTES, |cut| tail + cut);
        text.truncate(end);
    }
    HeaderValue::try_from(text).ok()
}

/// A `traceparent` that has the form of one: lower-case hex and dashes, 55 characters in version
/// 00, more in later ones (W3C Trace Context, section 3.2). Anything else comes from the publisher
/// and is not passed on.
fn traceparent(text: &str) -> Option<HeaderValue> {
    let formed = (55..=256).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'));
    formed.then(|| HeaderValue::from_str(text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::LoaderHeaders;
    use proptest::prelude::*;

    fn loader(url: &str, headers: &[(&str, &str)]) -> Loader {
        let headers = LoaderHeaders(
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        );
        Loader {
            name: "catalogue".to_owned(),
            url: url.to_owned(),
            headers,
            timeout: None,
            concurrency: None,
            rate: None,
            max_bytes: None,
        }
    }

    const CONFIG: WarmConfig =
        WarmConfig { concurrency: 1, timeout: Duration::from_secs(1), rate: None, max_bytes: 1 };

    #[test]
    fn a_url_stays_with_its_loader() {
        let endpoint =
            Endpoint::new(&CONFIG, &loader("http://shop.test:8080/api/", &[]), &[]).unwrap();
        for url in [
            "http://shop.test:8080/api/p/7?x=1",
            "http://shop.test:8080/api",
            "http://SHOP.test:8080/api/%2F",
        ] {
            assert!(endpoint.check(url).is_ok(), "{url}");
        }
        for url in [
            "http://shop.test:8080/api/../admin",
            "http://shop.test:8080/api/%2e%2E/admin",
            "http://shop.test:8080/apiary",
            "http://shop.test/api/p",
            "https://shop.test:8080/api/p",
            "http://shop.test:8080@evil.test/api/p",
            "//evil.test/api/p",
            "",
        ] {
            assert!(matches!(endpoint.check(url), Err(LoadError::Refused { .. })), "{url}");
        }
    }

    #[test]
    fn unusable_loaders_are_told_without_their_secrets() {
        let problems = Endpoint::new(
            &CONFIG,
            &loader("{vars.URL}", &[("X-Token", "sec\nret"), ("a b", "c")]),
            &[],
        )
        .unwrap_err();
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(
            told[0].contains("url") && told[1].contains("X-Token") && told[2].contains("a b"),
            "{told:?}"
        );
        assert!(!told.concat().contains("ret") && !told.concat().contains("vars"), "{told:?}");
        for url in ["ftp://shop.test/", "shop.test/p", "http:", ""] {
            assert_eq!(
                Endpoint::new(&CONFIG, &loader(url, &[]), &[]).unwrap_err(),
                [LoaderProblem::Url { loader: "catalogue".to_owned() }]
            );
        }
    }

    #[test]
    fn debug_output_holds_no_header_value() {
        let endpoint = Endpoint::new(
            &CONFIG,
            &loader("http://shop.test", &[("Authorization", "Bearer secret")]),
            &[],
        )
        .unwrap();
        assert!(!format!("{endpoint:?}").contains("secret"));
    }

    #[test]
    fn ids_are_encoded_and_cut_before_an_escape_that_does_not_fit() {
        assert_eq!(event_id("8c1f-2").unwrap(), "8c1f-2");
        assert_eq!(event_id("a\r\nb é").unwrap(), "a%0D%0Ab %C3%A9");
        assert_eq!(event_id(&"x".repeat(5000)).unwrap().len(), MAX_EVENT_ID_BYTES);
        assert_eq!(event_id(&format!("{}\nzz", "x".repeat(1022))).unwrap().len(), 1022);
        assert_eq!(event_id(&format!("{}\nzz", "x".repeat(1021))).unwrap().len(), 1024);
    }

    #[test]
    fn only_what_looks_like_a_traceparent_is_sent() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(good).unwrap(), good);
        for bad in ["", "00-x", &good.to_uppercase(), &format!("{good}\r\nx: y"), &"0".repeat(300)]
        {
            assert_eq!(traceparent(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_id_fits_a_header(id in "\\PC*|[\\x00-\\x7f]{0,2000}") {
            let value = event_id(&id).unwrap();
            prop_assert!(value.len() <= MAX_EVENT_ID_BYTES && value.to_str().is_ok());
        }
    }
}
