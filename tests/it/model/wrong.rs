//! Who gets it wrong: the seed's own snippets, and plausible protocols that lose. The same driver must find each of them out.

use redis::{Cmd, Value};
use unstale::cache::Cache;

use super::actors::{Life, Scripts, apply, generation, lease, set};
use super::tap::Tap;
use super::turns::Turns;
use super::world::{Change, Event, KEYS, World, loaded, written};

/// How a reader fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrongReader {
    /// `GET`, load, `SETEX`, `SADD`, `EXPIRE`.
    Seed,
    /// A lease, and no look at the tags' generations.
    LeaseAlone,
    /// A look at the generations before the key is in the sets.
    GenerationFirst,
    /// All is right but the sets' time to live, which is the last member's.
    ExpiringSets,
}

/// How a worker applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrongWorker {
    /// `DEL`; `SMEMBERS`, `DEL`, `DEL`; `SETEX`.
    Seed,
    /// The key goes before its lease.
    KeyBeforeLease,
    /// The members of a tag go, and their leases stay.
    MembersWithoutLeases,
    /// A tag's set is detached under a name that an earlier one may still have.
    OneNameForAll,
    /// Fences whose versions are numbers of Lua.
    Numbers,
    /// Of two events of one version the first stands.
    FirstOfEqual,
    /// Fences that only writes raise.
    WritesAloneRaise,
    /// An old deletion is thought to be done.
    SkipsOld,
    /// No fences at all.
    NoFences,
}

fn command(words: &[&str]) -> Cmd {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command
}

/// One step, one command.
async fn step(world: &World, turns: &Turns, words: &[&str]) -> Value {
    turns.next().await;
    world.ask(&command(words)).await
}

fn number(value: &Value) -> u64 {
    redis::from_redis_value(value.clone()).unwrap()
}

/// The lease of a key and what the sequence had come to, where the reader is to load.
async fn take_lease(world: &World, scripts: &Scripts, turns: &Turns, key: usize, token: &str) -> Option<u64> {
    turns.next().await;
    let mut keys = vec![KEYS[key].to_owned(), lease(key)];
    if !world.is_cluster() {
        keys.push("unstale:seq".to_owned());
    }
    let mut command = scripts.call("read", &keys);
    command.arg(token).arg(60_000).arg(0);
    let Value::Array(answer) = world.ask(&command).await else { panic!("no answer of the protocol") };
    match &answer[..] {
        [Value::BulkString(kind), ..] if kind == b"lease" && world.is_cluster() => {
            let sequence = step(world, turns, &["GET", "unstale:seq"]).await;
            Some(if sequence == Value::Nil { 0 } else { number(&sequence) })
        }
        [Value::BulkString(kind), since, ..] if kind == b"lease" => Some(number(since)),
        _ => None,
    }
}

pub(super) async fn reader(world: &World, scripts: &Scripts, turns: Turns, key: usize, life: Life, wrong: WrongReader) {
    let (name, millis) = (KEYS[key], life.0.to_string());
    let token = turns.token();
    let since = if wrong == WrongReader::Seed {
        if step(world, &turns, &["GET", name]).await != Value::Nil {
            return;
        }
        0
    } else {
        let Some(since) = take_lease(world, scripts, &turns, key, &token).await else { return };
        since
    };
    turns.next().await;
    let tags = world.load(key);
    let value = loaded(turns.now(), &tags);
    if wrong == WrongReader::Seed {
        step(world, &turns, &["PSETEX", name, &millis, &value]).await;
    }
    for &tag in &tags {
        let set = set(tag);
        let is_invalidated = async || {
            let last = step(world, &turns, &["GET", &generation(tag)]).await;
            last != Value::Nil && number(&last) > since
        };
        if wrong == WrongReader::GenerationFirst && is_invalidated().await {
            return;
        }
        step(world, &turns, &["SADD", &set, name]).await;
        if [WrongReader::Seed, WrongReader::ExpiringSets].contains(&wrong) {
            step(world, &turns, &["PEXPIRE", &set, &millis]).await;
        }
        if wrong == WrongReader::ExpiringSets && is_invalidated().await {
            return;
        }
    }
    if wrong != WrongReader::Seed {
        turns.next().await;
        let mut fill = scripts.call("fill", &[name.to_owned(), lease(key)]);
        fill.arg(&token).arg(since).arg(&value).arg("PX").arg(life.0).arg(life.0);
        world.ask(&fill).await;
    }
    world.check().await;
}

/// The fence is a number of Lua.
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

/// Exact, and what is not higher does nothing.
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

pub(super) async fn worker(world: &World, cache: &Cache, tap: &Tap, turns: Turns, mut random: fastrand::Rng, wrong: WrongWorker) {
    loop {
        turns.next().await;
        let Some(deliveries) = world.take(&mut random) else { return };
        for delivery in deliveries {
            for &at in &delivery.effects {
                let applications = world.begin([at], turns.now());
                let event = (at, world.event(at), delivery.is_copy);
                if !apply_wrongly(world, &turns, at, &event.1, wrong).await {
                    apply(cache, tap, &turns, std::slice::from_ref(&event)).await;
                }
                world.ended(&applications, turns.now());
                world.check().await;
            }
            world.redeliver(vec![delivery], &mut random);
        }
    }
}

/// False where this event is one that it gets right.
async fn apply_wrongly(world: &World, turns: &Turns, at: usize, event: &Event, wrong: WrongWorker) -> bool {
    match (wrong, &event.change) {
        (WrongWorker::Seed, Change::Delete { key, .. } | Change::Warm { key, .. }) => {
            step(world, turns, &["DEL", KEYS[*key]]).await;
        }
        (WrongWorker::Seed, Change::Write { key, tags, .. }) => {
            step(world, turns, &["SETEX", KEYS[*key], "3600", &written(at, tags)]).await;
            for &tag in tags {
                step(world, turns, &["SADD", &set(tag), KEYS[*key]]).await;
            }
        }
        (WrongWorker::Seed, Change::InvalidateTag(tag)) => {
            let members = members(&step(world, turns, &["SMEMBERS", &set(*tag)]).await);
            delete(world, turns, "DEL", &members).await;
            step(world, turns, &["DEL", &set(*tag)]).await;
        }
        (WrongWorker::KeyBeforeLease, Change::Delete { key, .. }) => {
            step(world, turns, &["UNLINK", KEYS[*key]]).await;
            step(world, turns, &["UNLINK", &lease(*key)]).await;
        }
        (WrongWorker::MembersWithoutLeases | WrongWorker::OneNameForAll, Change::InvalidateTag(tag)) => {
            let number = number(&step(world, turns, &["INCR", "unstale:seq"]).await).to_string();
            step(world, turns, &["SET", &generation(*tag), &number]).await;
            let name = if wrong == WrongWorker::OneNameForAll { "detached" } else { &number };
            let detached = format!("unstale:drain/{{{}}}:{name}", set(*tag));
            // There may be none.
            turns.next().await;
            let _none = world.try_ask(&command(&["RENAME", &set(*tag), &detached])).await;
            let members = members(&step(world, turns, &["SMEMBERS", &detached]).await);
            if wrong == WrongWorker::OneNameForAll {
                let leases = members.iter().map(|member| format!("unstale:lease/{{{member}}}")).collect::<Vec<_>>();
                delete(world, turns, "UNLINK", &leases).await;
            }
            delete(world, turns, "UNLINK", &members).await;
            step(world, turns, &["UNLINK", &detached]).await;
        }
        (WrongWorker::Numbers | WrongWorker::FirstOfEqual | WrongWorker::WritesAloneRaise, Change::Write { key, version, .. }) => {
            fenced(world, turns, *key, *version, &written(at, &[]), wrong).await;
        }
        (
            WrongWorker::Numbers | WrongWorker::FirstOfEqual | WrongWorker::WritesAloneRaise,
            Change::Delete { key, version } | Change::Warm { key, version },
        ) => {
            fenced(world, turns, *key, *version, "", wrong).await;
        }
        (WrongWorker::SkipsOld, Change::Delete { key, version }) => {
            let fence = format!("unstale:fence/{{{}}}:row", KEYS[*key]);
            let Value::BulkString(fence) = step(world, turns, &["GET", &fence]).await else { return false };
            let highest: u64 = String::from_utf8_lossy(&fence).split(':').next().unwrap().parse().unwrap();
            return *version < highest;
        }
        (WrongWorker::NoFences, Change::Write { key, .. }) => {
            step(world, turns, &["UNLINK", &lease(*key)]).await;
            step(world, turns, &["SET", KEYS[*key], &written(at, &[])]).await;
        }
        _ => return false,
    }
    true
}

fn members(answer: &Value) -> Vec<String> {
    redis::from_redis_value::<Vec<String>>(answer.clone()).unwrap().into_iter().filter(|member| KEYS.contains(&member.as_str())).collect()
}

/// All at once, where one server has them all.
async fn delete(world: &World, turns: &Turns, verb: &str, keys: &[String]) {
    let at_once = if world.is_cluster() { 1 } else { keys.len().max(1) };
    for keys in keys.chunks(at_once) {
        let words: Vec<&str> = std::iter::once(verb).chain(keys.iter().map(String::as_str)).collect();
        step(world, turns, &words).await;
    }
}

async fn fenced(world: &World, turns: &Turns, key: usize, version: u64, value: &str, wrong: WrongWorker) {
    step(world, turns, &["UNLINK", &lease(key)]).await;
    let script = if wrong == WrongWorker::Numbers { NUMBERS } else { TEXTS };
    let raising = if wrong == WrongWorker::WritesAloneRaise { "they do not" } else { "deletions raise" };
    let fence = format!("fence/{{{}}}", KEYS[key]);
    step(world, turns, &["EVAL", script, "2", KEYS[key], &fence, &version.to_string(), value, raising]).await;
}
