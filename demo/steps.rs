//! The steps of the tour: the cache before, the event, and the expected cache after it.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::cache::{Snapshot, State};
use crate::table::lifetime;

/// The catalogue service's answer for the product's page.
pub(crate) const PRODUCT_PAGE: &str = r#"{"id":7,"title":"Kite, red"}"#;
/// The catalogue service's answer for the ranking.
pub(crate) const RANKING: &str = r#"["Kite","Yo-yo","Top"]"#;

/// Maximum time between an effect and the check of its TTL.
const RAN_ON_SECONDS: u64 = 25;

pub(crate) struct Step {
    pub(crate) pattern: &'static str,
    pub(crate) story: &'static str,
    pub(crate) form: Form,
    pub(crate) event_type: &'static str,
    pub(crate) body: &'static str,
    pub(crate) rows: Vec<Row>,
    /// The worker must ask the catalogue.
    pub(crate) loads: bool,
}

/// The form in which the publisher writes the event. unstale reads all forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Bare,
    Envelope,
    CloudEvent,
}

/// One key: its meaning, its state before, and its expected state.
pub(crate) struct Row {
    pub(crate) key: &'static str,
    pub(crate) seed: Seed,
    want: Want,
}

pub(crate) enum Seed {
    Absent,
    /// Without TTL.
    Text(&'static str),
    /// With a TTL in seconds.
    Cached(&'static str, u64),
    /// The set of a tag.
    Tag(&'static [&'static str]),
}

enum Want {
    Gone,
    /// Unchanged.
    Kept,
    /// The same value, with a TTL shortened into this range of seconds.
    Shortened(RangeInclusive<u64>),
    /// A counter, without TTL.
    Counter(&'static str),
    /// A value with a TTL in this range of seconds.
    Value(&'static str, RangeInclusive<u64>),
    Members(&'static [&'static str]),
}

impl Form {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "plain JSON:",
            Self::Envelope => "envelope:",
            Self::CloudEvent => "CloudEvent:",
        }
    }
}

impl Step {
    /// Returns the differences from the expected state. Empty if there are none.
    pub(crate) fn problems(&self, before: &Snapshot, after: &Snapshot) -> Vec<String> {
        let watched = self
            .rows
            .iter()
            .filter_map(|row| row.problem(&before.watched[row.key], &after.watched[row.key]));
        let appeared = after
            .others
            .difference(&before.others)
            .map(|key| format!("{key} appeared, which no rule tells"));
        let vanished = before
            .others
            .difference(&after.others)
            .map(|key| format!("{key} is gone, which no rule tells"));
        watched.chain(appeared).chain(vanished).collect()
    }

    pub(crate) fn is_shortened(&self, row: &Row) -> bool {
        matches!(row.want, Want::Shortened(_))
    }
}

impl Row {
    /// Returns why `is` does not follow from `was`, if so.
    pub(crate) fn problem(&self, was: &State, is: &State) -> Option<String> {
        let key = self.key;
        let right = match (&self.want, was, is) {
            (Want::Gone, _, State::Absent) => true,
            (
                Want::Kept,
                State::Text { text: was, ttl: had },
                State::Text { text: is, ttl: has },
            ) => was == is && ran_on(*had, *has),
            (Want::Kept, ..) => was == is,
            (
                Want::Shortened(range),
                State::Text { text: was, .. },
                State::Text { text: is, ttl: Some(ttl) },
            ) => was == is && within(*ttl, range),
            (Want::Counter(number), _, State::Text { text, ttl: None }) => text == number,
            (Want::Value(value, range), _, State::Text { text, ttl: Some(ttl) }) => {
                text == value && within(*ttl, range)
            }
            (Want::Members(members), _, State::Set(set)) => {
                *set == members.iter().map(|member| (*member).to_owned()).collect::<BTreeSet<_>>()
            }
            _ => false,
        };
        (!right).then(|| format!("{key} should be {}, and is {}", self.want.text(), describe(is)))
    }
}

impl Want {
    fn text(&self) -> String {
        let seconds = |range: &RangeInclusive<u64>| {
            format!("with {} to {} s to live", range.start(), range.end())
        };
        match self {
            Self::Gone => "gone".to_owned(),
            Self::Kept => "untouched".to_owned(),
            Self::Shortened(range) => format!("the same, {}", seconds(range)),
            Self::Counter(number) => format!("the counter {number} without TTL"),
            Self::Value(value, range) => format!("{value} {}", seconds(range)),
            Self::Members(members) => format!("the set of {}", members.join(", ")),
        }
    }
}

fn describe(state: &State) -> String {
    match state {
        State::Absent => "not there".to_owned(),
        State::Text { text, ttl: None } => format!("{text} without TTL"),
        State::Text { text, ttl: Some(ttl) } => format!("{text} with {} to live", lifetime(*ttl)),
        State::Set(members) => format!(
            "the set of {}",
            members.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
        ),
    }
}

fn within(ttl: Duration, seconds: &RangeInclusive<u64>) -> bool {
    let ran_on = Duration::from_secs(RAN_ON_SECONDS);
    ttl + ran_on >= Duration::from_secs(*seconds.start())
        && ttl <= Duration::from_secs(*seconds.end())
}

fn ran_on(had: Option<Duration>, has: Option<Duration>) -> bool {
    match (had, has) {
        (Some(had), Some(has)) => has <= had && had - has <= Duration::from_secs(RAN_ON_SECONDS),
        (had, has) => had == has,
    }
}

/// Returns the range of a TTL: the default jitter shortens it by up to a tenth.
fn spread(seconds: u64) -> RangeInclusive<u64> {
    seconds - seconds / 10..=seconds
}

fn row(key: &'static str, seed: Seed, want: Want) -> Row {
    Row { key, seed, want }
}

pub(crate) fn all() -> Vec<Step> {
    use Seed::{Absent, Cached, Tag, Text};
    vec![
        Step {
            pattern: "TTL: stale soon, not at once",
            story: "A price changed. Offers need not be recomputed now, only within half a minute. A key that expires sooner keeps its TTL.",
            form: Form::Bare,
            event_type: "price.changed",
            body: r#"{"product_id":7}"#,
            rows: vec![
                row(
                    "shop:product:7:offers",
                    Cached("3 offers from 4.99", 3600),
                    Want::Shortened(spread(30)),
                ),
                row("shop:product:7:reviews", Cached("4 of 5 stars", 24), Want::Shortened(1..=24)),
                row("shop:product:8:offers", Cached("1 offer from 9.99", 3600), Want::Kept),
            ],
            loads: false,
        },
        Step {
            pattern: "Event-based: the event names the changed values",
            story: "A customer changed their e-mail address. The key under the old address must go as well, and no other customer's.",
            form: Form::Envelope,
            event_type: "user.updated",
            body: r#"{"type":"user.updated","data":{"id":42,"email":"ada@new.example"},"previous":{"email":"ada@old.example"}}"#,
            rows: vec![
                row("shop:user:42", Cached("Ada", 3600), Want::Gone),
                row("shop:user:42:profile", Cached("<h1>Ada</h1>", 3600), Want::Gone),
                row("shop:login:ada@old.example", Cached("42", 3600), Want::Gone),
                row("shop:user:43", Cached("Grace", 3600), Want::Kept),
            ],
            loads: false,
        },
        Step {
            pattern: "Tag-based: everything cached of a kind",
            story: "A category was renamed. Each cached value of it had its key put into the tag's set, so the event need not name the keys.",
            form: Form::CloudEvent,
            event_type: "category.updated",
            body: r#"{"slug":"books"}"#,
            rows: vec![
                row("shop:list:books:new", Cached("SICP, TAOCP", 3600), Want::Gone),
                row("shop:list:books:sale", Cached("K&R", 3600), Want::Gone),
                row(
                    "cache_tag:category:books",
                    Tag(&["shop:list:books:new", "shop:list:books:sale"]),
                    Want::Gone,
                ),
                row("shop:list:music:new", Cached("Kind of Blue", 3600), Want::Kept),
                row("cache_tag:category:music", Tag(&["shop:list:music:new"]), Want::Kept),
            ],
            loads: false,
        },
        Step {
            pattern: "Version-based: old keys become unreachable",
            story: "An editor published a menu. Readers build keys from the counter (menu:main:v3); absent counts as 1, so that one becomes 2.",
            form: Form::Bare,
            event_type: "menu.published",
            body: r#"{"menu":"main"}"#,
            rows: vec![
                row("shop:menu:main:version", Text("3"), Want::Counter("4")),
                row("shop:navigation:version", Absent, Want::Counter("2")),
                row("shop:menu:main:v3", Cached("Home, Toys, Books", 3600), Want::Kept),
            ],
            loads: false,
        },
        Step {
            pattern: "Write-through: the event carries the new value",
            story: "The warehouse counted. The new count is in the event, so the cache has it before anyone asks.",
            form: Form::Bare,
            event_type: "stock.changed",
            body: r#"{"sku":"KITE-7","left":3,"seq":1001}"#,
            rows: vec![
                row(
                    "shop:stock:KITE-7",
                    Cached(r#"{"sku":"KITE-7","left":9}"#, 300),
                    Want::Value(r#"{"sku":"KITE-7","left":3}"#, spread(600)),
                ),
                row("cache_tag:stock", Absent, Want::Members(&["shop:stock:KITE-7"])),
            ],
            loads: false,
        },
        Step {
            pattern: "Warming: loaded again before anyone waits",
            story: "The bestsellers changed. They are costly to compute and always asked for: the worker fetches them from the catalogue service.",
            form: Form::Bare,
            event_type: "ranking.changed",
            body: r#"{"category":"toys"}"#,
            rows: vec![
                row(
                    "shop:ranking:toys",
                    Cached(r#"["Top","Kite","Yo-yo"]"#, 3600),
                    Want::Value(RANKING, spread(3600)),
                ),
                row("cache_tag:rankings", Absent, Want::Members(&["shop:ranking:toys"])),
            ],
            loads: true,
        },
        Step {
            pattern: "All of them in one event",
            story: "A product was renamed and moved from games to toys, and its price in euro changed: schemas/product.yaml has the rules for it.",
            form: Form::Envelope,
            event_type: "product.updated",
            body: r#"{"type":"product.updated","data":{"id":7,"category":"toys","name":"Kite, red","rev":12,"prices":[{"list":"EUR","changed":true},{"list":"USD","changed":false}]},"previous":{"category":"games"}}"#,
            rows: vec![
                row("shop:product:7", Cached("Kite", 3600), Want::Gone),
                // The rule computes the key's name: sha1("/p/7").
                row(
                    "shop:html:9cf2113ee63319a5a60a094f3b4f8190ca6b2576",
                    Cached("<h1>Kite</h1>", 3600),
                    Want::Gone,
                ),
                row("shop:list:toys", Cached("Top, Yo-yo", 3600), Want::Gone),
                row("cache_tag:category:toys", Tag(&["shop:list:toys"]), Want::Gone),
                row("shop:list:games", Cached("Chess, Kite", 3600), Want::Gone),
                row("cache_tag:category:games", Tag(&["shop:list:games"]), Want::Gone),
                row("shop:product:7:version", Text("11"), Want::Counter("12")),
                row(
                    "shop:product:7:related",
                    Cached("Kite string", 3600),
                    Want::Shortened(spread(30)),
                ),
                row(
                    "shop:product:7:summary",
                    Cached(r#"{"id":7,"name":"Kite"}"#, 600),
                    Want::Value(r#"{"id":7,"name":"Kite, red"}"#, spread(3600)),
                ),
                row(
                    "shop:product:7:page",
                    Cached(r#"{"id":7,"title":"Kite"}"#, 600),
                    Want::Value(PRODUCT_PAGE, spread(3600)),
                ),
                row(
                    "cache_tag:products",
                    Absent,
                    Want::Members(&["shop:product:7:page", "shop:product:7:summary"]),
                ),
                row("shop:price:EUR:7", Cached("4.99", 3600), Want::Gone),
                row("shop:price:USD:7", Cached("5.49", 3600), Want::Kept),
                row("shop:product:8", Cached("Yo-yo", 3600), Want::Kept),
            ],
            loads: true,
        },
    ]
}
