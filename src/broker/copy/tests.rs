use lapin::types::{DecimalValue, FieldArray};
use proptest::prelude::*;

use super::super::convert::tests::{delivery, table};
use super::*;
use crate::event::Origin;

const FRAME_MAX: u32 = 131_072;

fn headers<'a>() -> CopyHeaders<'a> {
    CopyHeaders {
        attempt: 1,
        registry: "digest",
        time: "2026-01-02T03:04:05Z",
        ..CopyHeaders::default()
    }
}

/// Returns a worker's own message, without its signature.
fn republished(properties: BasicProperties) -> Delivery {
    let mut delivery = delivery("", "q", properties, b"{}");
    delivery.set_origin(Origin::Worker);
    delivery
}

fn copied(delivery: &Delivery, headers: &CopyHeaders<'_>) -> BTreeMap<String, AMQPValue> {
    let made = properties(delivery, headers, FRAME_MAX, &Signer::default());
    made.headers()
        .as_ref()
        .unwrap()
        .inner()
        .iter()
        .map(|(name, value)| (name.to_string(), value.clone()))
        .collect()
}

fn full_properties(headers: FieldTable) -> BasicProperties {
    BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
        .with_headers(headers)
        .with_delivery_mode(1)
        .with_priority(4)
        .with_correlation_id("c".into())
        .with_reply_to("r".into())
        .with_expiration("500".into())
        .with_message_id("m".into())
        .with_timestamp(12)
        .with_type("t".into())
        .with_user_id("guest".into())
        .with_app_id("a".into())
        .with_cluster_id("k".into())
}

fn publishers() -> Vec<(&'static str, AMQPValue)> {
    vec![
        ("array", AMQPValue::FieldArray(vec![AMQPValue::Void, long("x")].into())),
        ("bytes", AMQPValue::ByteArray(vec![0xff, 0].into())),
        ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 })),
        ("table", AMQPValue::FieldTable(table(&[("inner", AMQPValue::Double(0.1))]))),
        ("x-custom", AMQPValue::LongString(vec![0xc3].into())),
    ]
}

#[test]
fn everything_is_kept_but_what_would_harm_the_copy() {
    let cc = AMQPValue::FieldArray(FieldArray::from(vec![long("elsewhere")]));
    let mut all = publishers();
    all.extend([
        ("CC", cc.clone()),
        ("BCC", cc.clone()),
        ("x-death", AMQPValue::FieldArray(FieldArray::default())),
        ("x-first-death-queue", long("q")),
        ("x-first-death-reason", long("expired")),
        ("x-last-death-exchange", long("")),
        ("x-delivery-count", AMQPValue::LongLongInt(2)),
        ("x-acquired-count", AMQPValue::LongLongInt(2)),
        ("x-stream-offset", AMQPValue::LongLongInt(9)),
    ]);
    let original = delivery("events", "user.updated", full_properties(table(&all)), b"body");
    let made = copy_to("q.dead", &original, &headers(), FRAME_MAX, &Signer::default());
    assert_eq!((made.exchange(), made.routing_key(), made.body()), ("", "q.dead", &b"body"[..]));

    let mut expected: BTreeMap<String, AMQPValue> =
        publishers().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    for (name, value) in [
        (header::EXCHANGE, long("events")),
        (header::ROUTING_KEY, long("user.updated")),
        (header::FIRST_TIME, long("2026-01-02T03:04:05Z")),
        (header::TIME, long("2026-01-02T03:04:05Z")),
        (header::REGISTRY, long("digest")),
        (header::ATTEMPT, AMQPValue::LongInt(1)),
        (header::EXPIRATION, long("500")),
        (header::USER_ID, long("guest")),
        (header::CC, cc),
    ] {
        expected.insert(name.to_owned(), value);
    }
    assert_eq!(copied(&original, &headers()), expected);

    let bare = for_copy(made.properties(), FieldTable::default());
    let wanted = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
        .with_headers(FieldTable::default())
        .with_delivery_mode(2)
        .with_priority(4)
        .with_correlation_id("c".into())
        .with_reply_to("r".into())
        .with_message_id("m".into())
        .with_timestamp(12)
        .with_type("t".into())
        .with_app_id("a".into())
        .with_cluster_id("k".into());
    assert_eq!(bare, wanted, "no expiration, no user_id, persistent");
}

#[test]
fn a_copy_of_a_copy_keeps_the_first_arrival_and_says_the_rest_anew() {
    let first =
        delivery("events", "user.updated", full_properties(table(&[("mine", long("1"))])), b"{}");
    let told = CopyHeaders {
        reason: Some(Reason::LoaderRefused),
        error: Some("why"),
        event_type: Some("user.updated"),
        event_id: Some("id"),
        form: Some(Form::Bare),
        effects: Some(&[0, 12]),
        ..headers()
    };
    let made = properties(&first, &told, FRAME_MAX, &Signer::default());
    // The retry queue returns the message with this header.
    let mut death = made.headers().clone().unwrap();
    death.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::default()));
    let second = republished(made.with_headers(death));
    let again =
        copied(&second, &CopyHeaders { attempt: 2, time: "2026-01-02T03:05:00Z", ..headers() });
    for (name, value) in [
        (header::EXCHANGE, long("events")),
        (header::ROUTING_KEY, long("user.updated")),
        (header::FIRST_TIME, long("2026-01-02T03:04:05Z")),
        (header::TIME, long("2026-01-02T03:05:00Z")),
        (header::ATTEMPT, AMQPValue::LongInt(2)),
        (header::EVENT_TYPE, long("user.updated")),
        (header::EVENT_ID, long("id")),
        (header::FORM, long("bare")),
        (header::EXPIRATION, long("500")),
        (header::USER_ID, long("guest")),
        ("mine", long("1")),
    ] {
        assert_eq!(again.get(name), Some(&value), "{name}");
    }
    for name in [header::REASON, header::ERROR, header::EFFECTS, "x-death"] {
        assert_eq!(again.get(name), None, "{name} is of the earlier copy");
    }
}

#[test]
fn what_only_looks_like_ours_is_not_passed_on() {
    let forged = table(&[
        (header::EFFECTS, long("0")),
        (header::ATTEMPT, long("9")),
        (header::FIRST_TIME, long("1970-01-01T00:00:00Z")),
        (header::ROUTING_KEY, long("forged")),
        ("unstale-new-in-another-version", long("x")),
        (header::EVENT_TYPE, long("user.updated")),
    ]);
    let original = delivery("events", "k", BasicProperties::default().with_headers(forged), b"{}");
    let made = copied(&original, &headers());
    assert_eq!(made.get(header::EFFECTS), None);
    assert_eq!(made.get("unstale-new-in-another-version"), None);
    assert_eq!(made[header::ATTEMPT], AMQPValue::LongInt(1));
    assert_eq!(made[header::ROUTING_KEY], long("k"));
    assert_eq!(made[header::FIRST_TIME], long("2026-01-02T03:04:05Z"));
    assert_eq!(made[header::EVENT_TYPE], long("user.updated"), "a publisher may say the type");
}

#[test]
fn an_error_ends_on_a_character_within_1_kib() {
    let original = delivery("events", "k", BasicProperties::default(), b"{}");
    let error = format!("x{}", "é".repeat(600));
    let made = copied(&original, &CopyHeaders { error: Some(&error), ..headers() });
    assert_eq!(made[header::ERROR], long(format!("x{}", "é".repeat(511))));
}

#[test]
fn an_error_holds_nothing_that_a_terminal_acts_on() {
    let original = delivery("events", "k", BasicProperties::default(), b"{}");
    let made = copied(
        &original,
        &CopyHeaders { error: Some("at `/a\u{1b}[2J\nERROR\u{202e}`"), ..headers() },
    );
    assert_eq!(made[header::ERROR], long(r"at `/a\u{1b}[2J\nERROR\u{202e}`"));
}

#[test]
fn headers_that_do_not_fit_a_frame_give_way_ours_first() {
    let limit = FRAME_MAX as usize - BROKER_RESERVE_BYTES;
    let (error, id) = ("e".repeat(1_000), "i".repeat(2_000));
    let told = CopyHeaders { error: Some(&error), event_id: Some(&id), ..headers() };
    let with = |filler: usize| {
        let original = delivery(
            "events",
            "k",
            BasicProperties::default().with_headers(table(&[("big", long("x".repeat(filler)))])),
            b"{}",
        );
        let made = properties(&original, &told, FRAME_MAX, &Signer::default());
        assert!(content_header_bytes(&made) <= limit);
        made.headers().clone().unwrap()
    };
    let has = |table: &FieldTable, name: &str| table.contains_key(name);
    let small = with(1_000);
    assert!(has(&small, header::ERROR) && has(&small, header::EVENT_ID) && has(&small, "big"));
    let large = with(limit - 3_000);
    assert!(!has(&large, header::ERROR) && has(&large, header::EVENT_ID) && has(&large, "big"));
    let larger = with(limit - 1_500);
    assert!(!has(&larger, header::ERROR) && !has(&larger, header::EVENT_ID) && has(&larger, "big"));
    let huge = with(limit);
    assert!(has(&huge, header::ERROR) && has(&huge, header::EVENT_ID) && !has(&huge, "big"));
    assert_eq!(huge.inner().get(header::HEADERS_DROPPED), Some(&AMQPValue::Boolean(true)));
}

fn any_value() -> impl Strategy<Value = AMQPValue> {
    let leaf = prop_oneof![
        Just(AMQPValue::Void),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<u32>().prop_map(|value| AMQPValue::DecimalValue(DecimalValue { scale: 1, value })),
        prop::collection::vec(any::<u8>(), 0..3_000)
            .prop_map(|bytes| AMQPValue::LongString(bytes.into())),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3)
                .prop_map(|values| AMQPValue::FieldArray(values.into())),
            prop::collection::btree_map("[a-z]{1,8}", inner, 0..3).prop_map(|entries| {
                AMQPValue::FieldTable(FieldTable::from(
                    entries
                        .into_iter()
                        .map(|(name, value)| (name.as_str().into(), value))
                        .collect::<BTreeMap<ShortString, _>>(),
                ))
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_copy_fits_its_frame_and_any_header_survives_where_there_is_room(
        entries in prop::collection::btree_map("[a-z]{1,12}", any_value(), 0..12),
        event_type in ".{0,4000}",
        error in ".{0,2000}",
        frame_max in prop::sample::select(vec![8_192_u32, 32_768, 131_072]),
    ) {
        let entries: Vec<(&str, AMQPValue)> = entries.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        let original = delivery("events", "k", BasicProperties::default().with_headers(table(&entries)), b"{}");
        let made = properties(&original, &CopyHeaders { error: Some(&error), event_type: Some(&event_type), ..headers() }, frame_max, &Signer::with_secret("secret"));
        prop_assert!(content_header_bytes(&made) + BROKER_RESERVE_BYTES <= frame_max as usize);
        let copied = made.headers().as_ref().unwrap();
        if !copied.contains_key(header::HEADERS_DROPPED) {
            for (name, value) in entries {
                prop_assert_eq!(copied.inner().get(name), Some(&value));
            }
        }
    }
}

#[test]
fn a_suspect_that_is_set_aside_carries_its_count_and_no_other_copy_does() {
    let properties =
        |headers: &[(&str, AMQPValue)]| BasicProperties::default().with_headers(table(headers));
    let came = |headers: &[(&str, AMQPValue)]| republished(properties(headers));
    let fresh = delivery("events", "q", BasicProperties::default(), b"{}");
    let aside = copied(&fresh, &CopyHeaders { redelivered: Some(5), ..headers() });
    let aside: Vec<(&str, AMQPValue)> =
        aside.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    assert_eq!(came(&aside).counted_redeliveries(), Some(5));
    assert_eq!(
        delivery("events", "q", properties(&aside), b"{}").counted_redeliveries(),
        None,
        "not believed of a publisher"
    );
    let again: Vec<(&str, AMQPValue)> =
        aside.iter().cloned().chain([("x-delivery-count", AMQPValue::LongLongInt(2))]).collect();
    assert_eq!(
        came(&again).redelivered_once().counted_redeliveries(),
        Some(7),
        "the broker's count comes on top"
    );
    assert_eq!(
        copied(&came(&aside), &headers()).get(header::REDELIVERED),
        None,
        "only where the worker says so"
    );
}

#[test]
fn no_signature_vouches_for_what_an_unsigned_message_claims() {
    let claims = table(&[
        (header::ROUTING_KEY, long("user.updated")),
        (header::EXCHANGE, long("events")),
        (header::FORM, long("bare")),
        (header::EVENT_ID, long("id")),
        (header::FIRST_TIME, long("2030-01-01T00:00:00Z")),
        (header::ARRIVED_AFTER, long("2030-01-01T00:00:00Z")),
        (header::EFFECTS, long("0")),
        (header::REDELIVERED, AMQPValue::LongLongInt(19)),
        (header::EARLIER_REASONS, long("malformed@x")),
        (header::USER_ID, long("admin")),
    ]);
    let mut unsigned = delivery("", "q", BasicProperties::default().with_headers(claims), b"{}");
    unsigned.set_origin(Origin::Unsigned);
    assert_eq!(unsigned.counted_redeliveries(), None);
    let made = copied(&unsigned, &headers());
    let names: Vec<&str> = made.keys().map(String::as_str).collect();
    let expected = [
        header::ATTEMPT,
        header::EVENT_ID,
        header::EXCHANGE,
        header::FIRST_TIME,
        header::FORM,
        header::REGISTRY,
        header::ROUTING_KEY,
        header::TIME,
    ];
    assert_eq!(names, expected, "how the event is read, and what this copy says itself");
    assert_eq!(made[header::FIRST_TIME], long("2026-01-02T03:04:05Z"));
    assert_eq!(made[header::ROUTING_KEY], long("user.updated"));
}
