//! One loader as an HTTP client: its address, its headers, and the requests to it.

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
use super::outcome::{LoadContext, LoadError, LoadOutcome};
use super::problem::LoaderProblem;
use crate::config::WarmConfig;
use crate::quantity::format_duration;
use crate::registry::Loader;

const USER_AGENT: &str = concat!("unstale/", env!("CARGO_PKG_VERSION"));

/// Maximum size of the `unstale-event-id` header. Servers commonly refuse more than 8 KiB of
/// headers in all, and the publisher chooses the id.
const MAX_EVENT_ID_BYTES: usize = 1024;

/// A loader of the registry, ready for requests.
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
    /// Prepares a loader. It takes over unchanged limits, and the circuit breaker of an unchanged
    /// address, from `old`, the endpoints of the previous registry.
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
        // The body is cached as it arrives. Without this header a server may choose any encoding
        // (RFC 9110, section 12.5.3).
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

    pub(super) fn breaker_state(&self) -> (&str, bool) {
        (&self.name, self.breaker.is_open())
    }

    pub(super) fn uses_tls(&self) -> bool {
        self.base.scheme() == "https"
    }

    /// Parses a URL, and refuses one outside this loader's origin and path, because the loader's
    /// headers may be secrets. The registry builds no such URL; this is a second check.
    pub(super) fn check(&self, url: &str) -> Result<Url, LoadError> {
        let refused = |what: &str| LoadError::Refused {
            cause: format!("loader `{}`: {what}", self.name).into(),
        };
        let url = Url::parse(url).map_err(|_| refused("the URL for this event is not a URL"))?;
        let beneath = url.path().strip_prefix(self.base.path().trim_end_matches('/'));
        if url.origin() != self.base.origin()
            || !beneath.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        {
            return Err(refused("the URL for this event is outside the loader's host or path"));
        }
        Ok(url)
    }

    /// Loads a resource, and returns what the outcome shows about the loader's health.
    pub(super) async fn get(
        &self,
        client: &Client,
        url: Url,
        context: &LoadContext<'_>,
    ) -> (Result<LoadOutcome, LoadError>, Health) {
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
                    return health(Err(answer::unanswered(&self.name, error)), Health::Bad);
                }
            };
            // The event chooses the resource, and some resource may always fail. A client error
            // such as 429 concerns the loader as a whole.
            let if_failed = if answer.status().is_client_error() {
                Health::Bad
            } else {
                Health::Failing { resource }
            };
            health(answer::read(&self.name, answer, self.max_bytes).await, if_failed)
        };
        tokio::time::timeout(self.timeout, load).await.unwrap_or_else(|_| {
            let cause = format!(
                "loader `{}` did not finish its answer within {}",
                self.name,
                format_duration(self.timeout)
            );
            (Err(LoadError::Retry { after: None, cause: cause.into() }), Health::Bad)
        })
    }
}

/// Returns the outcome with its health: `if_failed` if another try may help, else good.
fn health(
    loaded: Result<LoadOutcome, LoadError>,
    if_failed: Health,
) -> (Result<LoadOutcome, LoadError>, Health) {
    let health =
        if matches!(loaded, Err(LoadError::Retry { .. })) { if_failed } else { Health::Good };
    (loaded, health)
}

/// Makes the HTTP client of all loaders. Without `tls` it loads no root certificates, so that
/// `http` works on a system without any.
pub(super) fn client(config: &WarmConfig, tls: bool) -> Result<Client, LoaderProblem> {
    // It fails if another part of the process has installed the same provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = Client::builder()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .pool_max_idle_per_host(config.concurrency);
    let builder = if tls { builder } else { builder.tls_certs_only([]) };
    builder.build().map_err(|error| LoaderProblem::Client(error.into()))
}

/// Returns the id as a header's value: control and non-ASCII characters are percent-encoded, and
/// the result is cut to [`MAX_EVENT_ID_BYTES`].
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

/// Returns the `traceparent` as a header's value if it is well-formed.
///
/// That is lower-case hex and dashes, at least 55 characters (W3C Trace Context, section 3.2). The
/// publisher wrote it, so any other text is not passed on.
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
    fn a_url_outside_its_loader_is_refused() {
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
    fn problems_of_loaders_hold_no_secrets() {
        let problems = Endpoint::new(
            &CONFIG,
            &loader("{vars.URL}", &[("X-Token", "sec\nret"), ("a b", "c")]),
            &[],
        )
        .unwrap_err();
        let messages: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(messages.len(), 3, "{messages:?}");
        assert!(
            messages[0].contains("url")
                && messages[1].contains("X-Token")
                && messages[2].contains("a b"),
            "{messages:?}"
        );
        assert!(
            !messages.concat().contains("ret") && !messages.concat().contains("vars"),
            "{messages:?}"
        );
        for url in ["ftp://shop.test/", "shop.test/p", "http:", ""] {
            let problems = Endpoint::new(&CONFIG, &loader(url, &[]), &[]).unwrap_err();
            assert!(
                matches!(problems.as_slice(), [LoaderProblem::Url { loader }] if loader == "catalogue"),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn debug_output_of_a_loader_holds_no_header_value() {
        let endpoint = Endpoint::new(
            &CONFIG,
            &loader("http://shop.test", &[("Authorization", "Bearer secret")]),
            &[],
        )
        .unwrap();
        assert!(!format!("{endpoint:?}").contains("secret"));
    }

    #[test]
    fn event_ids_are_encoded_and_never_cut_within_an_escape() {
        assert_eq!(event_id("8c1f-2").unwrap(), "8c1f-2");
        assert_eq!(event_id("a\r\nb é").unwrap(), "a%0D%0Ab %C3%A9");
        assert_eq!(event_id(&"x".repeat(5000)).unwrap().len(), MAX_EVENT_ID_BYTES);
        assert_eq!(event_id(&format!("{}\nzz", "x".repeat(1022))).unwrap().len(), 1022);
        assert_eq!(event_id(&format!("{}\nzz", "x".repeat(1021))).unwrap().len(), 1024);
    }

    #[test]
    fn only_a_well_formed_traceparent_is_sent() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(good).unwrap(), good);
        for bad in ["", "00-x", &good.to_uppercase(), &format!("{good}\r\nx: y"), &"0".repeat(300)]
        {
            assert_eq!(traceparent(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_event_id_fits_a_header(id in "\\PC*|[\\x00-\\x7f]{0,2000}") {
            let value = event_id(&id).unwrap();
            prop_assert!(value.len() <= MAX_EVENT_ID_BYTES && value.to_str().is_ok());
        }
    }
}
