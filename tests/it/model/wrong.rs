//! Who gets it wrong: the seed's own snippets, and plausible protocols that lose. The same driver must find each of them out.

use redis::{Cmd, Value};
use unstale::cache::Cache;

use super::actors::{Life, Scripts, apply, generation, lease, set, take_lease};
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
    /// Fences whose versions are numbers of Lua.
    Numbers,
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
        if wrong == WrongReader::GenerationFirst
            && let Value::BulkString(last) = step(world, &turns, &["GET", &generation(tag)]).await
            && String::from_utf8_lossy(&last).parse::<u64>().unwrap() > since
        {
            return;
        }
        step(world, &turns, &["SADD", &set, name]).await;
        match wrong {
            WrongReader::Seed | WrongReader::ExpiringSets => {
                step(world, &turns, &["PEXPIRE", &set, &millis]).await;
            }
            WrongReader::LeaseAlone | WrongReader::GenerationFirst => {}
        }
        if wrong == WrongReader::ExpiringSets
            && let Value::BulkString(last) = step(world, &turns, &["GET", &generation(tag)]).await
            && String::from_utf8_lossy(&last).parse::<u64>().unwrap() > since
        {
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

pub(super) async fn worker(world: &World, cache: &Cache, tap: &Tap, turns: Turns, mut random: fastrand::Rng, wrong: WrongWorker) {
    loop {
        turns.next().await;
        let Some(events) = world.take(&mut random) else { return };
        for event in events {
            let applications = world.begin(&[event], turns.now());
            let event = world.event(event);
            if !apply_wrongly(world, &turns, &event, wrong).await {
                apply(cache, tap, &turns, std::slice::from_ref(&event)).await;
            }
            world.end(&applications, turns.now(), &mut random).await;
        }
    }
}

/// False where this event is one that it gets right.
async fn apply_wrongly(world: &World, turns: &Turns, event: &Event, wrong: WrongWorker) -> bool {
    match (wrong, &event.change) {
        (WrongWorker::Seed, Change::Delete { key, .. } | Change::Warm { key, .. }) => {
            step(world, turns, &["DEL", KEYS[*key]]).await;
        }
        (WrongWorker::Seed, Change::Write { key, tags, .. }) => {
            step(world, turns, &["SETEX", KEYS[*key], "3600", &written(event.id, tags)]).await;
            for &tag in tags {
                step(world, turns, &["SADD", &set(tag), KEYS[*key]]).await;
            }
        }
        (WrongWorker::Seed, Change::InvalidateTag(tag)) => {
            let (Value::Array(members) | Value::Set(members)) = step(world, turns, &["SMEMBERS", &set(*tag)]).await else { panic!() };
            if !members.is_empty() {
                let names: Vec<String> = members.into_iter().map(|member| redis::from_redis_value(member).unwrap()).collect();
                let words: Vec<&str> = std::iter::once("DEL").chain(names.iter().map(String::as_str)).collect();
                step(world, turns, &words).await;
                step(world, turns, &["DEL", &set(*tag)]).await;
            }
        }
        (WrongWorker::KeyBeforeLease, Change::Delete { key, .. }) => {
            step(world, turns, &["UNLINK", KEYS[*key]]).await;
            step(world, turns, &["UNLINK", &lease(*key)]).await;
        }
        (WrongWorker::Numbers, Change::Write { key, version, tags }) => {
            numbers(world, turns, *key, *version, &written(event.id, tags)).await
        }
        (WrongWorker::Numbers, Change::Delete { key, version } | Change::Warm { key, version }) => {
            numbers(world, turns, *key, *version, "").await;
        }
        (WrongWorker::SkipsOld, Change::Delete { key, version }) => {
            let fence = format!("unstale:fence/{{{}}}:row", KEYS[*key]);
            let Value::BulkString(fence) = step(world, turns, &["GET", &fence]).await else { return false };
            let highest: u64 = String::from_utf8_lossy(&fence).split(':').next().unwrap().parse().unwrap();
            return *version < highest;
        }
        (WrongWorker::NoFences, Change::Write { key, tags, .. }) => {
            step(world, turns, &["UNLINK", &lease(*key)]).await;
            step(world, turns, &["SET", KEYS[*key], &written(event.id, tags)]).await;
        }
        _ => return false,
    }
    true
}

async fn numbers(world: &World, turns: &Turns, key: usize, version: u64, value: &str) {
    step(world, turns, &["UNLINK", &lease(key)]).await;
    step(world, turns, &["EVAL", NUMBERS, "2", KEYS[key], "number-fence", &version.to_string(), value]).await;
}
