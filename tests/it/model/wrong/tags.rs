//! Tags that are invalidated and maintained in a wrong way.

use redis::Value;

use super::super::actors::{generation, set};
use super::super::turns::Turns;
use super::super::world::{KEYS, TAGS, World};
use super::workers::Done;
use super::{WrongUpkeep, WrongWorker, command, number, step};

pub(super) async fn invalidate(
    world: &World,
    turns: &Turns,
    tag: usize,
    random: &mut fastrand::Rng,
    wrong: WrongWorker,
) -> Done {
    let set = set(tag);
    if wrong == WrongWorker::Seed {
        let members = members(&step(world, turns, &["SMEMBERS", &set]).await);
        delete(world, turns, "DEL", &members).await;
        step(world, turns, &["DEL", &set]).await;
        return Done::Wrongly;
    }
    let number = number(&step(world, turns, &["INCR", "unstale:seq"]).await).to_string();
    step(world, turns, &["SET", &generation(tag), &number]).await;
    let name = if wrong == WrongWorker::OneNameForAll { "detached" } else { &number };
    let detached = format!("unstale:drain/{{{set}}}:{name}");
    let members = members(&match wrong {
        WrongWorker::MembersThenSet => step(world, turns, &["SMEMBERS", &set]).await,
        WrongWorker::PopsMembers => step(world, turns, &["SPOP", &set, "1000"]).await,
        _ => {
            // There may be none.
            turns.next().await;
            let _none = world.try_ask(&command(&["RENAME", &set, &detached])).await;
            if wrong == WrongWorker::KeepsNoRecord && random.bool() {
                return Done::Died;
            }
            step(world, turns, &["SMEMBERS", &detached]).await
        }
    });
    if wrong == WrongWorker::PopsMembers && random.bool() {
        return Done::Died;
    }
    if wrong != WrongWorker::MembersWithoutLeases {
        let leases =
            members.iter().map(|member| format!("unstale:lease/{{{member}}}")).collect::<Vec<_>>();
        delete(world, turns, "UNLINK", &leases).await;
    }
    delete(world, turns, "UNLINK", &members).await;
    let gone = if wrong == WrongWorker::MembersThenSet { set } else { detached };
    step(world, turns, &["UNLINK", &gone]).await;
    Done::Wrongly
}

fn members(answer: &Value) -> Vec<String> {
    redis::from_redis_value::<Vec<String>>(answer.clone())
        .unwrap()
        .into_iter()
        .filter(|member| KEYS.contains(&member.as_str()))
        .collect()
}

/// Deletes all at once, if one server has them all.
async fn delete(world: &World, turns: &Turns, verb: &str, keys: &[String]) {
    let at_once = if world.is_cluster() { 1 } else { keys.len().max(1) };
    for keys in keys.chunks(at_once) {
        let words: Vec<&str> =
            std::iter::once(verb).chain(keys.iter().map(String::as_str)).collect();
        step(world, turns, &words).await;
    }
}

/// Removes members whose keys are gone from their sets.
pub(in super::super) async fn upkeep(
    world: &World,
    turns: Turns,
    mut random: fastrand::Rng,
    wrong: WrongUpkeep,
) {
    for _ in 0..4 * TAGS.len() {
        turns.rest(&mut random).await;
        let set = set(random.usize(..TAGS.len()));
        for member in members(&step(world, &turns, &["SMEMBERS", &set]).await) {
            if number(&step(world, &turns, &["EXISTS", &member]).await) > 0 {
                continue;
            }
            step(world, &turns, &["SREM", &set, &member]).await;
            if wrong == WrongUpkeep::PutsBack
                && number(&step(world, &turns, &["EXISTS", &member]).await) > 0
            {
                step(world, &turns, &["SADD", &set, &member]).await;
            }
        }
        world.check().await;
    }
}
