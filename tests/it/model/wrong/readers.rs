//! Readers that fill in a wrong way.

use redis::Value;

use super::super::actors::{LEASE, Scripts, generation, lease, set};
use super::super::event::{Life, loaded};
use super::super::turns::Turns;
use super::super::world::{KEYS, World};
use super::{WrongReader, number, step};

/// Takes the lease of a key and the current sequence number, if the reader is to load.
async fn take_lease(
    world: &World,
    scripts: &Scripts,
    turns: &Turns,
    key: usize,
    token: &str,
) -> Option<u64> {
    turns.next().await;
    let mut keys = vec![KEYS[key].to_owned(), lease(key)];
    if !world.is_cluster() {
        keys.push("unstale:seq".to_owned());
    }
    let mut command = scripts.call("read", &keys);
    command.arg(token).arg(LEASE.as_millis().to_string()).arg(0);
    let Value::Array(answer) = world.ask(&command).await else {
        panic!("no answer of the protocol")
    };
    match &answer[..] {
        [Value::BulkString(kind), ..] if kind == b"lease" && world.is_cluster() => {
            let sequence = step(world, turns, &["GET", "unstale:seq"]).await;
            Some(if sequence == Value::Nil { 0 } else { number(&sequence) })
        }
        [Value::BulkString(kind), since, ..] if kind == b"lease" => Some(number(since)),
        _ => None,
    }
}

pub(in super::super) async fn reader(
    world: &World,
    scripts: &Scripts,
    turns: Turns,
    key: usize,
    life: Life,
    wrong: WrongReader,
) {
    if wrong == WrongReader::Seed {
        seed(world, &turns, key).await;
    } else {
        let token = turns.token();
        let Some(since) = take_lease(world, scripts, &turns, key, &token).await else { return };
        turns.next().await;
        let tags = world.load(key);
        let value = loaded(turns.now(), &tags);
        if joined(world, &turns, key, (since, &tags), life, wrong).await {
            fill(world, scripts, &turns, key, (&token, since), (&value, life), wrong).await;
        }
        turns.next().await;
        let mut release = scripts.call("release", &[lease(key)]);
        world.ask(release.arg(&token)).await;
    }
    world.check().await;
}

async fn seed(world: &World, turns: &Turns, key: usize) {
    let name = KEYS[key];
    if step(world, turns, &["GET", name]).await != Value::Nil {
        return;
    }
    turns.next().await;
    let tags = world.load(key);
    let value = loaded(turns.now(), &tags);
    step(world, turns, &["SETEX", name, "3600", &value]).await;
    for &tag in &tags {
        step(world, turns, &["SADD", &set(tag), name]).await;
        step(world, turns, &["EXPIRE", &set(tag), "3600"]).await;
    }
}

/// Adds the key to its tags' sets; returns false if the fill is refused.
async fn joined(
    world: &World,
    turns: &Turns,
    key: usize,
    (since, tags): (u64, &[usize]),
    life: Life,
    wrong: WrongReader,
) -> bool {
    for &tag in tags {
        let is_invalidated = async || {
            let last = step(world, turns, &["GET", &generation(tag)]).await;
            last != Value::Nil && number(&last) > since
        };
        if wrong == WrongReader::GenerationFirst && is_invalidated().await {
            return false;
        }
        let rule = match wrong {
            WrongReader::LastMembersLife => LAST_MEMBERS,
            WrongReader::FirstMembersLife => FIRST_MEMBERS,
            WrongReader::LifeForAll => FOR_ALL,
            WrongReader::LifeForSome => FOR_SOME,
            _ => RIGHT,
        };
        let millis =
            life.time().map_or(String::new(), |time| (time + LEASE).as_millis().to_string());
        step(world, turns, &["EVAL", rule, "1", &set(tag), KEYS[key], &millis]).await;
        if ![WrongReader::GenerationFirst, WrongReader::LeaseAlone].contains(&wrong)
            && is_invalidated().await
        {
            return false;
        }
    }
    true
}

/// Adds the key to the set, whose time to live is ARGV[2] if the key has one.
const RIGHT: &str = "
local before = redis.call('PTTL', KEYS[1])
redis.call('SADD', KEYS[1], ARGV[1])
if ARGV[2] == '' then
  redis.call('PERSIST', KEYS[1])
elseif before == -2 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
elseif before >= 0 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2], 'GT')
end";

const LAST_MEMBERS: &str = "
redis.call('SADD', KEYS[1], ARGV[1])
if ARGV[2] == '' then
  redis.call('PERSIST', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end";

const FIRST_MEMBERS: &str = "
local before = redis.call('PTTL', KEYS[1])
redis.call('SADD', KEYS[1], ARGV[1])
if ARGV[2] == '' then
  redis.call('PERSIST', KEYS[1])
elseif before == -2 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end";

const FOR_ALL: &str = "
redis.call('SADD', KEYS[1], ARGV[1])
if ARGV[2] == '' then
  redis.call('PERSIST', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[2], 'NX')
  redis.call('PEXPIRE', KEYS[1], ARGV[2], 'GT')
end";

const FOR_SOME: &str = "
local before = redis.call('PTTL', KEYS[1])
redis.call('SADD', KEYS[1], ARGV[1])
if ARGV[2] ~= '' and before == -2 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
elseif ARGV[2] ~= '' and before >= 0 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2], 'GT')
end";

async fn fill(
    world: &World,
    scripts: &Scripts,
    turns: &Turns,
    key: usize,
    (token, since): (&str, u64),
    (value, life): (&str, Life),
    wrong: WrongReader,
) {
    let millis = life.time().map_or(0, |time| time.as_millis()).to_string();
    if wrong == WrongReader::LeaseFirst {
        let holder = step(world, turns, &["GET", &lease(key)]).await;
        if holder == Value::BulkString(token.into()) {
            step(world, turns, &["SET", KEYS[key], value]).await;
        }
        return;
    }
    turns.next().await;
    let mut fill = scripts.call("fill", &[KEYS[key].to_owned(), lease(key)]);
    let unit = if life == Life::Forever { "" } else { "PX" };
    fill.arg(token).arg(since).arg(value).arg(unit).arg(&millis).arg(&millis);
    world.ask(&fill).await;
}
