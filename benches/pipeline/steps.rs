//! The steps from bytes to a settlement, on one batch of the events that most benchmarks publish.

use unstale::config::{UnknownPolicy, Vars};
use unstale::event::{Decoded, Event, Message, Reading, decode};
use unstale::plan::{Batch, EffectRef, Plan, RetrySchedule, SettlePolicy, Settlement, settle};
use unstale::registry::{LoadOptions, MissingVars, Registry, Resolution};

pub(crate) const ONE_DELETE: &str =
    r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

/// The same rules with a JSON Schema.
pub(crate) const WITH_SCHEMA: &str = r#"
events:
  user.updated:
    data:
      type: object
      required: [id, email, plan]
      properties:
        id: { type: integer, minimum: 0 }
        email: { type: string, format: email, maxLength: 254 }
        plan: { enum: [free, team, enterprise] }
    effects: [ { delete: "user:{id}" } ]
"#;

/// The default of `UNSTALE_BATCH`.
pub(crate) const EVENTS: u32 = 256;

pub(crate) fn bodies() -> Vec<String> {
    let body = |id| {
        format!(
            r#"{{"id":"e-{id}","type":"user.updated","data":{{"id":{id},"email":"user{id}@example.org","plan":"team"}}}}"#
        )
    };
    (0..EVENTS).map(body).collect()
}

pub(crate) fn messages(bodies: &[String]) -> Vec<Message<'_>> {
    let usual =
        || Message { exchange: "events", routing_key: "user.updated", ..Message::default() };
    bodies.iter().map(|body| Message { body: body.as_bytes(), ..usual() }).collect()
}

pub(crate) fn registry(rules: &str) -> Registry {
    let schemas = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(schemas.path().join("users.yaml"), rules).expect("the folder is ours");
    let options = LoadOptions {
        schemas: schemas.path().to_owned(),
        key_prefix: String::new(),
        vars: Vars::default(),
        tag_prefix: "cache_tag:".to_owned(),
        max_keys_per_event: 10_000,
        missing_vars: MissingVars::Refuse,
    };
    Registry::load(&options).expect("the rules load").registry
}

pub(crate) fn decoded<'m>(message: &'m Message<'m>) -> Event<'m> {
    match decode(message, Reading::default()) {
        Ok(Decoded::Event(event)) => event,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn coalesced(resolutions: &[Resolution]) -> Plan<'_> {
    let mut batch = Batch::new("cache_tag:", resolutions.len());
    for (event, resolution) in (0..).zip(resolutions) {
        for (position, effect) in (0..).zip(&resolution.effects) {
            batch.push(EffectRef { event, position }, effect);
        }
    }
    batch.finish()
}

pub(crate) fn policy() -> SettlePolicy {
    SettlePolicy { retry_schedule: RetrySchedule(Vec::new()), unknown: UnknownPolicy::Dead }
}

pub(crate) fn settled(policy: &SettlePolicy, resolutions: &[Resolution]) -> Vec<Settlement> {
    resolutions.iter().map(|resolution| settle(policy, resolution, None, &[], 0)).collect()
}
