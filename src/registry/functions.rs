//! The functions that expressions have beside CEL's own: `lower upper trim md5 sha1 sha256 urlencode date`.

use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue};
use cel::common::types::{
    CelDouble, CelInt, CelString, CelTimestamp, CelUInt, DOUBLE_TYPE, DYN_TYPE, INT_TYPE, STRING_TYPE, TIMESTAMP_TYPE, UINT_TYPE,
};
use cel::common::value::{CowVal, Val};
use cel::{Context, Env, ExecutionError, Value};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use super::cel_value::Meter;
use super::expression::ENV;

/// Their names.
pub(super) const NAMES: [&str; 9] = ["changed", "date", "lower", "md5", "sha1", "sha256", "trim", "upper", "urlencode"];

/// Everything but the unreserved characters of RFC 3986, section 2.3.
pub(super) const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The variable that holds the event's [`Meter`].
pub(super) const METER: &str = "@meter";

/// Counts one round of a loop.
pub(super) const STEP: &str = "@step";

/// Counts what it takes to read a whole value.
pub(super) const SCAN: &str = "@scan";

type Answer<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;
type Call = for<'b, 'v> fn(Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v>;

/// Declares them. (`changed` is no function when an expression runs: its answer is a variable.)
pub(super) fn declare(env: &mut Env) {
    let of_text: [(&str, Call); 7] = [
        ("lower", |args| of_text(&args, str::to_lowercase)),
        ("upper", |args| of_text(&args, str::to_uppercase)),
        ("trim", |args| of_text(&args, |text| text.trim().to_owned())),
        ("md5", |args| of_text(&args, |text| hex(&md5::Md5::digest(text)))),
        ("sha1", |args| of_text(&args, |text| hex(&sha1::Sha1::digest(text)))),
        ("sha256", |args| of_text(&args, |text| hex(&Sha256::digest(text)))),
        ("urlencode", |args| of_text(&args, |text| utf8_percent_encode(text, ENCODED).to_string())),
    ];
    let times = [("string", STRING_TYPE), ("timestamp", TIMESTAMP_TYPE), ("int", INT_TYPE), ("uint", UINT_TYPE), ("double", DOUBLE_TYPE)];
    let mut declared = true;
    for (name, call) in of_text {
        declared &= env.add_overload(name, &format!("{name}_string"), vec![STRING_TYPE], call).is_ok();
    }
    for (name, time) in times {
        declared &= env.add_overload("date", &format!("date_{name}"), vec![time, STRING_TYPE, STRING_TYPE], date).is_ok();
    }
    declared &= env.add_overload(STEP, STEP, vec![DYN_TYPE, DYN_TYPE], |args| metered(args, |_| 1)).is_ok();
    declared &= env.add_overload(SCAN, SCAN, vec![DYN_TYPE, DYN_TYPE], |args| metered(args, scanning_steps)).is_ok();
    debug_assert!(declared, "a function of ours has the name of one of CEL's");
}

fn of_text<'b, 'v>(args: &[CowVal<'b, 'v>], f: impl Fn(&str) -> String) -> Answer<'b, 'v> {
    let text = text_of(args, 0)?;
    Ok(CowVal::owned(CelString::from(f(text))))
}

/// The second argument, after the meter has counted it.
fn metered<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>, steps: fn(&dyn Val) -> u64) -> Answer<'b, 'v> {
    let value = args.pop().ok_or_else(|| ExecutionError::function_error("", "nothing to count"))?;
    match args.first().and_then(|meter| meter.downcast_ref::<Meter>()) {
        Some(meter) if meter.spend(steps(value.as_ref())) => Ok(value),
        _ => Err(ExecutionError::function_error(STEP, "")),
    }
}

/// In steps of a loop: comparing an element takes a small part of one, copying text a smaller one.
fn scanning_steps(value: &dyn Val) -> u64 {
    match value.downcast_ref::<CelString>() {
        Some(text) => text.inner().len() as u64 / 64,
        None => value.as_sizer().map_or(0, |list| u64::try_from(*list.size().inner()).unwrap_or(0) / 16),
    }
}

/// Asks CEL itself whether it reads a pattern of `matches`.
pub(super) fn try_pattern(pattern: &str) -> Result<(), String> {
    let literal = |text: &str| IdedExpr { id: 0, expr: Expr::Literal(LiteralValue::String(CelString::from(text.to_owned()))) };
    let call = CallExpr { func_name: "matches".to_owned(), target: Some(Box::new(literal(""))), args: vec![literal(pattern)] };
    let asked = IdedExpr { id: 0, expr: Expr::Call(call) };
    let context = Context::with_env(ENV.clone());
    match Value::resolve_val(&asked, &context) {
        Err(ExecutionError::FunctionError { message, .. }) => {
            Err(message.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned())
        }
        Err(_) => Err("CEL does not read it".to_owned()),
        Ok(_) => Ok(()),
    }
}

/// Whether strftime knows the format.
pub(super) fn is_date_format(format: &str) -> bool {
    jiff::fmt::strtime::format(format, &Timestamp::UNIX_EPOCH.to_zoned(jiff::tz::TimeZone::UTC)).is_ok()
}

/// Whether IANA's data base, as this machine has it, knows the zone.
pub(super) fn is_zone(zone: &str) -> bool {
    jiff::tz::TimeZone::get(zone).is_ok()
}

fn text_of<'a>(args: &'a [CowVal<'_, '_>], at: usize) -> Result<&'a str, ExecutionError> {
    let text = args.get(at).and_then(|value| value.downcast_ref::<CelString>()).map(CelString::inner);
    text.ok_or_else(|| ExecutionError::function_error("", "not a string"))
}

/// `date(time, format, zone)`: RFC 3339 text, a timestamp or Unix seconds; a strftime format; an IANA zone.
fn date<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let wrong = |what: &str| ExecutionError::function_error("date", what);
    let time = timestamp_of(&args).ok_or_else(|| wrong("the time is neither RFC 3339 nor Unix seconds within the years -9999 to 9999"))?;
    let zone = jiff::tz::TimeZone::get(text_of(&args, 2)?).map_err(|_| wrong("the zone is none of IANA's"))?;
    let text =
        jiff::fmt::strtime::format(text_of(&args, 1)?, &time.to_zoned(zone)).map_err(|_| wrong("the format is none of strftime's"))?;
    Ok(CowVal::owned(CelString::from(text)))
}

fn timestamp_of(args: &[CowVal<'_, '_>]) -> Option<Timestamp> {
    let value = args.first()?;
    if let Some(text) = value.downcast_ref::<CelString>() {
        return text.inner().parse().ok();
    }
    if let Some(seconds) = value.downcast_ref::<CelInt>() {
        return Timestamp::from_second(*seconds.inner()).ok();
    }
    if let Some(seconds) = value.downcast_ref::<CelUInt>() {
        return Timestamp::from_second(i64::try_from(*seconds.inner()).ok()?).ok();
    }
    if let Some(seconds) = value.downcast_ref::<CelDouble>() {
        let span = jiff::SignedDuration::try_from_secs_f64(*seconds.inner()).ok()?;
        return Timestamp::from_duration(span).ok();
    }
    let time = value.downcast_ref::<CelTimestamp>()?.inner();
    Timestamp::new(time.timestamp(), i32::try_from(time.timestamp_subsec_nanos()).ok()?).ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        text.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
        text.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        text
    })
}
