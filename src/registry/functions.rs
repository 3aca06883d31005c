//! Functions that expressions have beside CEL's own: `lower upper trim md5 sha1 sha256 urlencode
//! date`.
//!
//! `changed` and `json` are handled when an expression is compiled.

use cel::common::types::{
    CelDouble, CelInt, CelString, CelTimestamp, CelUInt, DOUBLE_TYPE, INT_TYPE, STRING_TYPE,
    TIMESTAMP_TYPE, UINT_TYPE,
};
use cel::common::value::CowVal;
use cel::{Env, ExecutionError};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

/// Names of the functions.
pub(super) const NAMES: [&str; 10] =
    ["changed", "date", "json", "lower", "md5", "sha1", "sha256", "trim", "upper", "urlencode"];

/// Every character except the unreserved ones of RFC 3986, section 2.3.
pub(super) const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Maximum length of a format of `date`, in bytes. One directive may become 255 characters.
const MAX_FORMAT_BYTES: usize = 1024;

type Answer<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;
type Call = for<'b, 'v> fn(Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v>;

/// Declares the functions in CEL's environment. (`changed` is not among them: it is a node of its
/// own.)
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
    let times = [
        ("string", STRING_TYPE),
        ("timestamp", TIMESTAMP_TYPE),
        ("int", INT_TYPE),
        ("uint", UINT_TYPE),
        ("double", DOUBLE_TYPE),
    ];
    let mut declared = true;
    for (name, call) in of_text {
        declared &=
            env.add_overload(name, &format!("{name}_string"), vec![STRING_TYPE], call).is_ok();
    }
    for (name, time) in times {
        declared &= env
            .add_overload(
                "date",
                &format!("date_{name}"),
                vec![time, STRING_TYPE, STRING_TYPE],
                date,
            )
            .is_ok();
    }
    debug_assert!(declared, "a function of ours has the name of one of CEL's");
}

fn of_text<'b, 'v>(args: &[CowVal<'b, 'v>], f: impl Fn(&str) -> String) -> Answer<'b, 'v> {
    let text = text_of(args, 0)?;
    Ok(CowVal::owned(CelString::from(f(text))))
}

/// Returns whether a text is a format of strftime.
pub(super) fn is_date_format(format: &str) -> bool {
    jiff::fmt::strtime::format(format, &Timestamp::UNIX_EPOCH.to_zoned(jiff::tz::TimeZone::UTC))
        .is_ok()
}

/// Returns whether this machine's IANA database has the time zone.
pub(super) fn is_zone(zone: &str) -> bool {
    jiff::tz::TimeZone::get(zone).is_ok()
}

fn text_of<'a>(args: &'a [CowVal<'_, '_>], at: usize) -> Result<&'a str, ExecutionError> {
    let text =
        args.get(at).and_then(|value| value.downcast_ref::<CelString>()).map(CelString::inner);
    text.ok_or_else(|| ExecutionError::function_error("", "not a string"))
}

/// Computes `date(time, format, zone)`.
///
/// The time is RFC 3339 text, a timestamp or Unix seconds. The format is one of strftime, the zone
/// one of IANA.
fn date<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let wrong = |what: &str| ExecutionError::function_error("date", what);
    let time = timestamp_of(&args).ok_or_else(|| {
        wrong("the time is neither RFC 3339 nor Unix seconds within the years -9999 to 9999")
    })?;
    let format = text_of(&args, 1)?;
    if format.len() > MAX_FORMAT_BYTES {
        return Err(wrong("the format has more than 1024 bytes"));
    }
    let zone = jiff::tz::TimeZone::get(text_of(&args, 2)?)
        .map_err(|_| wrong("the zone is not in the IANA database"))?;
    let text = jiff::fmt::strtime::format(format, &time.to_zoned(zone))
        .map_err(|_| wrong("the format is not one of strftime"))?;
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

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        text.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
        text.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        text
    })
}
