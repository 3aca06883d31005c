//! Plans for people: a block of lines for each event.

use std::fmt::Write as _;

use super::meaning::Plan;
use crate::printable::shown;
use crate::quantity::format_duration;
use crate::registry::{Action, Effect, Expiry, Matched, Only, RuleName, Stale};

/// Maximum width of the column of targets.
const MAX_TARGET_CHARS: usize = 48;

pub(super) fn block(plan: &Plan<'_>, rules: &[RuleName], place: &str) -> String {
    let mut out = String::new();
    match plan.event {
        Some(event) => line(
            &mut out,
            format_args!("{}  ({place}, id {})", shown(&event.event_type), shown(&event.id)),
        ),
        None if plan.error.is_none() => line(&mut out, format_args!("tombstone  ({place})")),
        None => line(&mut out, format_args!("not an event  ({place})")),
    }
    let width = plan
        .effects
        .iter()
        .map(|effect| shown(&effect.target).chars().count())
        .max()
        .unwrap_or(0)
        .min(MAX_TARGET_CHARS);
    for effect in &plan.effects {
        let rule = rules.get(effect.rule.0 as usize).map_or("", |rule| rule.name.as_str());
        let (verb, target) = (effect.action.verb().as_str(), shown(&effect.target));
        line(&mut out, format_args!("  {verb:<15}  {target:<width$}  {}", shown(rule)));
        for detail in details(effect) {
            line(&mut out, format_args!("  {:<15}    {detail}", ""));
        }
    }
    for note in &plan.notes {
        let rule = rules.get(note.rule.0 as usize).map_or("", |rule| rule.name.as_str());
        let item = note.item.map(|item| format!(", element {item}")).unwrap_or_default();
        line(&mut out, format_args!("  skipped: {}{item}: {}", shown(rule), shown(&note.message)));
    }
    match &plan.error {
        Some((reason, message)) => {
            line(&mut out, format_args!("  dead letter: {reason}: {}", shown(message)))
        }
        None if plan.effects.is_empty() => {
            line(&mut out, format_args!("  nothing to do{}", why_no_effects(plan)))
        }
        None => {}
    }
    out.push('\n');
    out
}

fn why_no_effects(plan: &Plan<'_>) -> &'static str {
    match (plan.event, plan.matched) {
        (None, _) => "",
        (Some(_), Matched::Retired(_)) => ": the event is retired",
        (Some(_), Matched::Unknown) => {
            ": no event definition matches the event, and UNSTALE_UNKNOWN=drop"
        }
        (Some(_), Matched::Definition(_)) => ": no rule applies",
    }
}

fn details(effect: &Effect) -> Vec<String> {
    let mut details = match &effect.action {
        Action::Delete | Action::InvalidateTag | Action::BumpVersion => Vec::new(),
        Action::Expire(expires) => vec![expiry(*expires)],
        Action::Write(write) => {
            let mut details = vec![format!("= {}", shown(&write.value)), expiry(write.expiry)];
            details.extend(tags(&write.tags));
            details
        }
        Action::Warm(warm) => {
            let mut details = vec![format!("from {}", shown(&warm.url)), expiry(warm.expiry)];
            details.extend(tags(&warm.tags));
            details
                .extend((warm.only == Only::Present).then(|| "only if it was cached".to_owned()));
            details.extend(
                (warm.stale == Stale::Serve)
                    .then(|| "the old value is served meanwhile".to_owned()),
            );
            details
        }
    };
    details.extend(effect.again.map(|again| format!("again after {}", format_duration(again))));
    details.extend(
        effect
            .version
            .as_ref()
            .map(|version| format!("version {} of {}", version.digits, shown(&version.family))),
    );
    details
}

fn expiry(expiry: Expiry) -> String {
    match expiry {
        Expiry::After { ttl, jitter } if jitter > 0.0 => {
            format!("for at most {}, less up to {:.0} %", format_duration(ttl), jitter * 100.0)
        }
        Expiry::After { ttl, .. } => format!("for at most {}", format_duration(ttl)),
        Expiry::At(millis) => format!("until {}", moment(millis)),
        Expiry::Never => "without expiry".to_owned(),
    }
}

fn tags(tags: &[String]) -> Option<String> {
    (!tags.is_empty()).then(|| format!("tagged {}", shown(&tags.join(", "))))
}

/// Returns a moment as RFC 3339 in UTC, or as milliseconds if it has no date.
pub(super) fn moment(millis: i64) -> String {
    jiff::Timestamp::from_millisecond(millis)
        .map_or_else(|_| millis.to_string(), |moment| moment.to_string())
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = out.write_fmt(text);
    out.truncate(out.trim_end_matches(' ').len());
    out.push('\n');
}
