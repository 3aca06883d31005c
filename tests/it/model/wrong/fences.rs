//! Fences that lose writes.

use redis::Value;

use super::super::actors::lease;
use super::super::event::{Event, Order, written};
use super::super::turns::Turns;
use super::super::world::{KEYS, World};
use super::{WrongWorker, step};

/// Fence as a number of Lua.
const NUMBERS: &str = "
local fence = tonumber(redis.call('GET', KEYS[2]) or '-1')
if ARGV[2] == '' then
  redis.call('UNLINK', KEYS[1])
end
if tonumber(ARGV[1]) > fence then
  redis.call('SET', KEYS[2], ARGV[1])
  if ARGV[2] ~= '' then
    redis.call('SET', KEYS[1], ARGV[2])
  end
end";

/// Exact fence. A version that is not higher does nothing.
const TEXTS: &str = "
local fence = redis.call('GET', KEYS[2]) or ''
local is_higher = #ARGV[1] > #fence or (#ARGV[1] == #fence and ARGV[1] > fence)
if ARGV[2] == '' then
  redis.call('UNLINK', KEYS[1])
elseif is_higher then
  redis.call('SET', KEYS[1], ARGV[2])
end
if is_higher and (ARGV[2] ~= '' or ARGV[3] == 'deletions raise') then
  redis.call('SET', KEYS[2], ARGV[1])
end";

/// Exact fence, and right if ARGV[3] is empty.
///
/// ARGV: version, value, fault, lifetime (ms), entity, event, place.
const MARKS: &str = "
local version, value, wrong, kept, entity, event, place = unpack(ARGV)
local fence = redis.call('GET', KEYS[2])
local standing = 'newer'
if fence then
  local its_entity, its_version, its_event, its_place = string.match(fence, '^(%d+):(%d+):(%d*):(%d*)$')
  if entity ~= its_entity and wrong ~= 'compared' then
    standing = 'newer'
  elseif version ~= its_version then
    standing = (#version > #its_version or (#version == #its_version and version > its_version)) and 'newer' or 'old'
  elseif event ~= its_event then
    standing = 'tied'
  elseif wrong ~= 'again' then
    standing = tonumber(place) > tonumber(its_place) and 'newer' or 'old'
  end
end
if standing == 'newer' then
  redis.call('SET', KEYS[2], table.concat({ entity, version, event, place }, ':'), 'PX', kept)
elseif standing == 'tied' then
  redis.call('SET', KEYS[2], table.concat({ entity, version, '', '' }, ':'), 'PX', kept)
end
if value == '' or standing == 'tied' then
  redis.call('UNLINK', KEYS[1])
elseif standing == 'newer' then
  redis.call('SET', KEYS[1], value)
end";

/// Applies a write, or without a value a deletion, of the effect at that place.
pub(super) async fn fenced(
    world: &World,
    turns: &Turns,
    at: usize,
    event: &Event,
    is_write: bool,
    wrong: WrongWorker,
) {
    let (key, Order { family, version }) = event.row().expect("of a key, with a version");
    let (value, version) =
        (if is_write { written(at, &[]) } else { String::new() }, version.to_string());
    if wrong != WrongWorker::WritesLeaveLeases || !is_write {
        step(world, turns, &["UNLINK", &lease(key)]).await;
    }
    let is_shared = matches!(wrong, WrongWorker::EntitiesCompared | WrongWorker::EntitiesReplaced);
    let fence = format!("fence/{{{}}}:{}", KEYS[key], if is_shared { 0 } else { family });
    let (script, how) = match wrong {
        WrongWorker::Numbers => (NUMBERS, ""),
        WrongWorker::FirstOfEqual => (TEXTS, "deletions raise"),
        WrongWorker::WritesAloneRaise => (TEXTS, "they do not"),
        WrongWorker::EntitiesCompared => (MARKS, "compared"),
        WrongWorker::SameEventAgain => (MARKS, "again"),
        WrongWorker::FenceFirst => {
            return looking_first(world, turns, key, &fence, (&version, &value)).await;
        }
        _ => (MARKS, ""),
    };
    let kept = if wrong == WrongWorker::ShortFences { "20000" } else { "86400000" };
    let (family, event, place) =
        (family.to_string(), event.id.to_string(), event.place.to_string());
    step(
        world,
        turns,
        &[
            "EVAL", script, "2", KEYS[key], &fence, &version, &value, how, kept, &family, &event,
            &place,
        ],
    )
    .await;
}

/// Applies it in steps; with equal versions, it deletes.
async fn looking_first(
    world: &World,
    turns: &Turns,
    key: usize,
    fence: &str,
    (version, value): (&str, &str),
) {
    let known = match step(world, turns, &["GET", fence]).await {
        Value::BulkString(known) => String::from_utf8(known).unwrap().parse().unwrap(),
        _ => 0_u64,
    };
    let own: u64 = version.parse().unwrap();
    if value.is_empty() || own == known {
        step(world, turns, &["UNLINK", KEYS[key]]).await;
    } else if own > known {
        step(world, turns, &["SET", KEYS[key], value]).await;
    }
    if own > known {
        step(world, turns, &["SET", fence, version]).await;
    }
}
