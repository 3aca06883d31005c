//! Signature of republished messages, which proves that a worker wrote our headers.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use ring::hmac::{Context, HMAC_SHA256, Key};
use subtle::ConstantTimeEq as _;

use crate::event::header;

/// Number of remembered secrets: messages signed with an earlier one still arrive.
const KEPT_SECRETS: usize = 4;

/// Signs the headers of republished messages, and checks the signatures. Clones share their
/// secrets.
///
/// A publisher may send headers with our names. They stay on every message that the broker
/// dead-letters or an operator moves. So a worker signs all `unstale-*` headers together with the
/// body. The workers of one Redis share the secret
/// ([`Cache::signing_secret`](crate::cache::Cache::signing_secret)). Without a secret the signer
/// signs nothing and trusts nothing.
#[derive(Clone, Default)]
pub struct Signer(Arc<ArcSwap<Vec<Secret>>>);

struct Secret {
    text: Box<str>,
    key: Key,
}

/// Never shows the secrets.
impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("secrets", &self.0.load().len()).finish()
    }
}

impl Signer {
    /// Returns a signer with that secret.
    pub fn with_secret(secret: &str) -> Self {
        let signer = Self::default();
        signer.learn(secret);
        signer
    }

    /// Signs with that secret from now on. Signatures by the last few secrets stay valid.
    pub fn learn(&self, secret: &str) {
        if self.secret().as_deref() == Some(secret) {
            return;
        }
        self.0.rcu(|known| {
            let secret =
                Secret { text: secret.into(), key: Key::new(HMAC_SHA256, secret.as_bytes()) };
            let earlier = known
                .iter()
                .filter(|known| known.text != secret.text)
                .take(KEPT_SECRETS - 1)
                .map(Secret::duplicate);
            let earlier: Vec<Secret> = earlier.collect();
            std::iter::once(secret).chain(earlier).collect::<Vec<_>>()
        });
    }

    /// Returns the current secret, if there is one.
    pub fn secret(&self) -> Option<String> {
        self.0.load().first().map(|secret| secret.text.to_string())
    }

    /// Signs a message that is to be published with these headers and this body.
    pub fn sign(&self, headers: &mut FieldTable, body: &[u8]) {
        let known = self.0.load();
        let Some(secret) = known.first() else { return };
        let signature = BASE64.encode(mac(&secret.key, headers, body));
        headers.insert(header::SIGNATURE.into(), AMQPValue::LongString(signature.into()));
    }

    /// Returns whether a worker wrote our headers, for this body.
    pub(super) fn has_signed(&self, headers: &FieldTable, body: &[u8]) -> bool {
        let Some(AMQPValue::LongString(claimed)) = headers.inner().get(header::SIGNATURE) else {
            return false;
        };
        let mut decoded = [0; 32];
        if !matches!(BASE64.decode_slice(claimed.as_bytes(), &mut decoded), Ok(32)) {
            return false;
        }
        self.0
            .load()
            .iter()
            .any(|secret| mac(&secret.key, headers, body).as_slice().ct_eq(&decoded).into())
    }
}

impl Secret {
    fn duplicate(&self) -> Self {
        Self { text: self.text.clone(), key: self.key.clone() }
    }
}

/// Returns the code over our headers in the order of their names, each part with its length, then
/// the body.
fn mac(key: &Key, headers: &FieldTable, body: &[u8]) -> [u8; 32] {
    let mut context = Context::with_key(key);
    for (name, value) in headers.inner() {
        if name.as_str().starts_with(header::PREFIX) && name.as_str() != header::SIGNATURE {
            add_bytes(&mut context, name.as_str().as_bytes());
            add_value(&mut context, value);
        }
    }
    // No header begins like this: a name has at most 255 bytes.
    add_bytes_of(&mut context, u64::MAX);
    context.update(body);
    let mut mac = [0; 32];
    mac.copy_from_slice(context.sign().as_ref());
    mac
}

fn add_bytes_of(context: &mut Context, number: u64) {
    context.update(&number.to_le_bytes());
}

fn add_bytes(context: &mut Context, bytes: &[u8]) {
    add_bytes_of(context, bytes.len() as u64);
    context.update(bytes);
}

/// Adds a value by meaning, not by type.
///
/// A broker or a shovel may pass an integer or a text on as another type.
fn add_value(context: &mut Context, value: &AMQPValue) {
    let mut integer = |number: i64| {
        context.update(b"i");
        add_bytes_of(context, number.cast_unsigned());
    };
    match value {
        AMQPValue::ShortShortInt(number) => integer(i64::from(*number)),
        AMQPValue::ShortShortUInt(number) => integer(i64::from(*number)),
        AMQPValue::ShortInt(number) => integer(i64::from(*number)),
        AMQPValue::ShortUInt(number) => integer(i64::from(*number)),
        AMQPValue::LongInt(number) => integer(i64::from(*number)),
        AMQPValue::LongUInt(number) => integer(i64::from(*number)),
        AMQPValue::LongLongInt(number) => integer(*number),
        AMQPValue::LongString(text) => {
            context.update(b"t");
            add_bytes(context, text.as_bytes());
        }
        AMQPValue::ShortString(text) => {
            context.update(b"t");
            add_bytes(context, text.as_str().as_bytes());
        }
        AMQPValue::ByteArray(bytes) => {
            context.update(b"t");
            add_bytes(context, bytes.as_slice());
        }
        AMQPValue::Boolean(value) => context.update(if *value { b"y" } else { b"n" }),
        AMQPValue::FieldArray(values) => {
            context.update(b"a");
            add_bytes_of(context, values.as_slice().len() as u64);
            values.as_slice().iter().for_each(|value| add_value(context, value));
        }
        AMQPValue::FieldTable(table) => {
            context.update(b"m");
            add_bytes_of(context, table.inner().len() as u64);
            table.inner().iter().for_each(|(name, value): (&ShortString, _)| {
                add_bytes(context, name.as_str().as_bytes());
                add_value(context, value);
            });
        }
        // None of our headers: only the publisher's `CC` can hold these types.
        AMQPValue::Float(_)
        | AMQPValue::Double(_)
        | AMQPValue::DecimalValue(_)
        | AMQPValue::Timestamp(_)
        | AMQPValue::Void => context.update(b"o"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::convert::long;
    use super::super::convert::tests::table;
    use super::*;

    const SECRET: &str = "a secret of thirty-two bytes or so";

    fn ours() -> Vec<(&'static str, AMQPValue)> {
        vec![
            (header::ROUTING_KEY, long("user.updated")),
            (header::EFFECTS, long("1")),
            (header::ATTEMPT, AMQPValue::LongInt(3)),
            (header::CC, AMQPValue::FieldArray(vec![long("elsewhere")].into())),
            ("theirs", long("x")),
        ]
    }

    fn signed(signer: &Signer) -> FieldTable {
        let mut headers = table(&ours());
        signer.sign(&mut headers, b"body");
        headers
    }

    fn with(mut headers: FieldTable, name: &str, value: AMQPValue) -> FieldTable {
        headers.insert(name.into(), value);
        headers
    }

    #[test]
    fn what_was_signed_is_believed_whatever_else_the_broker_adds() {
        let signer = Signer::with_secret(SECRET);
        let headers = signed(&signer);
        assert!(signer.has_signed(&headers, b"body"));
        let moved = with(
            with(headers, "x-death", AMQPValue::FieldArray(Default::default())),
            "theirs",
            long("y"),
        );
        assert!(signer.has_signed(&moved, b"body"));
        let retyped = with(moved, header::ATTEMPT, AMQPValue::LongLongInt(3));
        assert!(
            signer.has_signed(&retyped, b"body"),
            "a number is the same number in another type"
        );
    }

    #[test]
    fn nothing_of_it_can_be_changed() {
        let signer = Signer::with_secret(SECRET);
        let headers = signed(&signer);
        assert!(!signer.has_signed(&headers, b"another body"));
        for (name, value) in [
            (header::EFFECTS, long("0")),
            (header::EFFECTS, long("1,2")),
            (header::ATTEMPT, AMQPValue::LongInt(4)),
            (header::ATTEMPT, long("3")),
            (header::CC, AMQPValue::FieldArray(vec![long("else"), long("where")].into())),
            (header::REDELIVERED, AMQPValue::LongLongInt(1)),
            ("unstale-of-another-version", long("x")),
            (header::SIGNATURE, long("")),
            (header::SIGNATURE, long("x".repeat(43))),
            (header::SIGNATURE, AMQPValue::Boolean(true)),
        ] {
            assert!(!signer.has_signed(&with(headers.clone(), name, value), b"body"), "{name}");
        }
        let mut without = headers.inner().clone();
        without.remove(header::EFFECTS);
        assert!(!signer.has_signed(&FieldTable::from(without), b"body"));
        assert!(!signer.has_signed(&table(&ours()), b"body"), "no signature");
    }

    #[test]
    fn earlier_secrets_are_believed_for_a_while() {
        let signer = Signer::default();
        let unsigned = signed(&signer);
        assert!(
            !unsigned.contains_key(header::SIGNATURE) && !signer.has_signed(&unsigned, b"body"),
            "there is no secret yet"
        );
        signer.learn("first");
        let first = signed(&signer);
        signer.learn("first");
        for secret in ["second", "third", "fourth"] {
            signer.learn(secret);
        }
        assert!(signer.has_signed(&first, b"body"));
        assert!(signer.has_signed(&signed(&signer), b"body"));
        signer.learn("fifth");
        assert!(!signer.has_signed(&first, b"body"));
        assert!(!Signer::with_secret("another").has_signed(&signed(&signer), b"body"));
        assert!(!format!("{signer:?}").contains("fifth"));
    }
}
