//! Plans for programs: one JSON object on each line, `{"event": …, "effects": […], "error": …}`.

use std::fmt::Write as _;

use super::meaning::Plan;
use crate::event::json::write_string;
use crate::quantity::format_duration;
use crate::registry::{Action, Effect, Expiry, Only, RuleName, Stale};

pub(super) fn line(plan: &Plan<'_>, rules: &[RuleName]) -> String {
    let mut out = String::from("{\"event\":");
    match plan.event {
        None => out.push_str("null"),
        Some(event) => {
            out.push('{');
            text(&mut out, "id", &event.id);
            text(&mut out, "type", &event.event_type);
            for (name, value) in
                [("time", &event.time), ("source", &event.source), ("subject", &event.subject)]
            {
                match value {
                    Some(value) => text(&mut out, name, value),
                    None => raw(&mut out, name, "null"),
                }
            }
            raw(
                &mut out,
                "position",
                &event.position.map_or_else(|| "null".to_owned(), |position| position.to_string()),
            );
            name(&mut out, "data");
            event.data().write_compact(&mut out);
            name(&mut out, "previous");
            match event.previous() {
                Some(previous) => previous.write_compact(&mut out),
                None => out.push_str("null"),
            }
            out.push('}');
        }
    }
    out.push_str(",\"effects\":[");
    for (at, one) in plan.effects.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        effect(&mut out, one, rules);
    }
    out.push_str("],\"error\":");
    match &plan.error {
        None => out.push_str("null"),
        Some((reason, message)) => {
            out.push('{');
            text(&mut out, "reason", reason.as_str());
            text(&mut out, "message", message);
            out.push('}');
        }
    }
    out.push_str("}\n");
    out
}

fn effect(out: &mut String, effect: &Effect, rules: &[RuleName]) {
    out.push('{');
    text(out, "verb", effect.action.verb().as_str());
    text(out, "target", &effect.target);
    text(out, "rule", rules.get(effect.rule.0 as usize).map_or("", |rule| &rule.name));
    match &effect.action {
        Action::Delete | Action::InvalidateTag | Action::BumpVersion => {}
        Action::Expire(expires) => expiry(out, *expires),
        Action::Write(write) => {
            text(out, "value", &write.value);
            expiry(out, write.expiry);
            tags(out, &write.tags);
        }
        Action::Warm(warm) => {
            text(out, "url", &warm.url);
            expiry(out, warm.expiry);
            tags(out, &warm.tags);
            if warm.stale == Stale::Serve {
                text(out, "stale", "serve");
            }
            if warm.only == Only::Present {
                text(out, "only", "present");
            }
        }
    }
    if let Some(again) = effect.again {
        text(out, "again", &format_duration(again));
    }
    if let Some(version) = &effect.version {
        name(out, "version");
        out.push('{');
        text(out, "family", &version.family);
        text(out, "digits", &version.digits);
        out.push('}');
    }
    out.push('}');
}

fn expiry(out: &mut String, expiry: Expiry) {
    match expiry {
        Expiry::After { ttl, jitter } => {
            text(out, "ttl", &format_duration(ttl));
            name(out, "jitter");
            // Writing to a String does not fail.
            let _ = write!(out, "{jitter}");
        }
        Expiry::At(millis) => text(out, "at", &super::text::moment(millis)),
        Expiry::Never => text(out, "ttl", "none"),
    }
}

fn tags(out: &mut String, tags: &[String]) {
    name(out, "tags");
    out.push('[');
    for (at, tag) in tags.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_string(tag, out);
    }
    out.push(']');
}

fn name(out: &mut String, name: &str) {
    if !out.ends_with('{') {
        out.push(',');
    }
    write_string(name, out);
    out.push(':');
}

fn text(out: &mut String, key: &str, value: &str) {
    name(out, key);
    write_string(value, out);
}

fn raw(out: &mut String, key: &str, value: &str) {
    name(out, key);
    out.push_str(value);
}
