//! A worker's user loses one permission, an event is applied as far as Redis permits, and the
//! permission is given back. The same event must then take effect, on one server and in a cluster.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster_async::ClusterConnection;
use tokio_util::sync::CancellationToken;
use unstale::cache::Cache;
use unstale::config::{RedisConfig, RedisMode, SecretUrl};
use unstale::plan::EffectOutcome;
use unstale::registry::{Action, Effect, Expiry, LoaderId, Only, Stale, Warm};

use super::{documented_acl, documented_row};
use crate::cache::{HOUR, at, config, effect, run, try_apply, write};
use crate::support::{Redis, RedisCluster, wait_until};

/// The year 2100.
const THEN: Expiry = Expiry::At(4_102_444_800_000);

/// Members of a tag that is deleted in slices.
const MANY: u32 = 600;

/// Maximum number of times that the event is applied again, until it is not refused.
const TRIES: u32 = 20;

/// A server, or a cluster, with an administrator's connection.
enum Server {
    Single(Redis, MultiplexedConnection),
    Cluster(RedisCluster, Box<ClusterConnection>),
}

impl Server {
    async fn single() -> Self {
        let redis = Redis::start().await;
        let connection = redis.connection().await;
        Self::Single(redis, connection)
    }

    async fn cluster() -> Self {
        let cluster = RedisCluster::start().await;
        let connection = Box::new(cluster.client().await);
        Self::Cluster(cluster, connection)
    }

    /// Returns the documented rules.
    fn rules(&self) -> Vec<String> {
        let rules = documented_acl("secret", "shop:");
        let again = documented_row("| some rule has `again` |");
        match self {
            Self::Single(..) => [rules, again].concat(),
            Self::Cluster(..) => {
                [rules, again, documented_row("| `UNSTALE_REDIS_MODE=cluster` |")].concat()
            }
        }
    }

    /// Runs a command on each node.
    async fn on_each(&mut self, command: &[&str]) {
        match self {
            Self::Single(_, connection) => run::<()>(connection, command).await,
            Self::Cluster(cluster, _) => {
                for node in 0..3 {
                    cluster.ask::<()>(node, command).await;
                }
            }
        }
    }

    /// Runs a command on the node that has its key.
    async fn ask<T: redis::FromRedisValue>(&mut self, command: &[&str]) -> T {
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(&command[1..]);
        match self {
            Self::Single(_, connection) => cmd.query_async(connection).await.unwrap(),
            Self::Cluster(_, connection) => cmd.query_async(&mut **connection).await.unwrap(),
        }
    }

    async fn grant(&mut self, rules: &[String]) {
        let command: Vec<&str> = ["ACL", "SETUSER", "unstale", "reset"]
            .into_iter()
            .chain(rules.iter().map(String::as_str))
            .collect();
        self.on_each(&command).await;
    }

    async fn cache(&self) -> Cache {
        let url = |addr: String| {
            SecretUrl::new(format!("redis://unstale:secret@{addr}").parse().unwrap())
        };
        let (mode, addr) = match self {
            Self::Single(redis, _) => (RedisMode::Single, redis.addr()),
            Self::Cluster(cluster, _) => (RedisMode::Cluster, cluster.nodes[0].addr()),
        };
        let config = RedisConfig { urls: vec![url(addr)], mode, ..config("redis://h/") };
        let cache = Cache::connect(&config, "q").unwrap();
        cache.probe().await.unwrap();
        cache
    }
}

/// An event that must remove the value `old` from keys.
struct Case {
    name: &'static str,
    /// Effects that are applied first.
    before: Vec<Effect>,
    /// Keys that are members of `cache_tag:t` before, with the value `old`.
    members: u32,
    /// True if the tag's set has a TTL at first.
    set_expires: bool,
    event: Effect,
}

fn post(digits: &str, event: u64, effect: Effect) -> Effect {
    at(("post", digits), (event, 1), effect)
}

fn cases() -> Vec<Case> {
    let written = |name, expiry, tags: &[&str], set_expires| Case {
        name,
        before: vec![post("1", 1, effect(0, "shop:k", write("old", expiry, tags)))],
        members: 0,
        set_expires,
        event: post("2", 2, effect(0, "shop:k", write("new", expiry, tags))),
    };
    let plain = |name, action, members, set_expires| Case {
        name,
        before: vec![effect(0, "shop:k", write("old", HOUR, &[]))],
        members,
        set_expires,
        event: effect(0, if members > 0 { "t" } else { "shop:k" }, action),
    };
    let over = write("new", Expiry::At(1), &[]);
    let tied = post("1", 2, effect(0, "shop:k", write("new", HOUR, &["t"])));
    vec![
        written("a tagged write with a version", HOUR, &["t"], true),
        written("a tagged write with a version until a time", THEN, &["t"], true),
        written("a tagged write with a version for ever", Expiry::Never, &["t"], true),
        written("a write with a version and two tags", HOUR, &["t", "other"], false),
        written("a write with a version", HOUR, &[], false),
        Case {
            event: post("2", 2, effect(0, "shop:k", over)),
            ..written("an expired write", HOUR, &[], false)
        },
        Case {
            event: tied,
            ..written("a write with the version of another event", HOUR, &["t"], false)
        },
        Case {
            event: post("2", 2, effect(0, "shop:k", Action::Delete)),
            ..written("a delete with a version", HOUR, &["t"], false)
        },
        plain("a tagged write", write("new", HOUR, &["t"]), 0, true),
        plain("a delete", Action::Delete, 0, false),
        plain("a small tag", Action::InvalidateTag, 2, false),
        plain("a small tag with a TTL", Action::InvalidateTag, 2, true),
        plain("a big tag", Action::InvalidateTag, MANY, false),
        plain("a big tag with a TTL", Action::InvalidateTag, MANY, true),
    ]
}

/// Names of the tag's members. One command reaches all of them, also in a cluster.
fn members(case: &Case) -> Vec<String> {
    (0..case.members).map(|n| format!("shop:{{m}}:{n}")).collect()
}

/// Returns how many keys of a case still have the value `old`.
async fn stale(server: &mut Server, case: &Case) -> usize {
    let members = members(case);
    let keys = if members.is_empty() { vec!["shop:k".to_owned()] } else { members };
    let command: Vec<&str> = ["MGET"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    let values: Vec<Option<String>> = server.ask(&command).await;
    values.iter().filter(|value| value.as_deref() == Some("old")).count()
}

async fn prepare(server: &mut Server, case: &Case) {
    server.on_each(&["FLUSHALL"]).await;
    let cache = server.cache().await;
    assert_eq!(try_apply(&cache, &case.before).await.unwrap().unsettled, [], "{}", case.name);
    let members = members(case);
    if !members.is_empty() {
        let pairs = members.iter().flat_map(|key| [key.as_str(), "old"]);
        server.ask::<()>(&["MSET"].into_iter().chain(pairs).collect::<Vec<_>>()).await;
        let names = members.iter().map(String::as_str);
        server
            .ask::<()>(&["SADD", "cache_tag:t"].into_iter().chain(names).collect::<Vec<_>>())
            .await;
    }
    if case.set_expires {
        server.ask::<()>(&["SADD", "cache_tag:t", "shop:other"]).await;
        server.ask::<()>(&["PEXPIRE", "cache_tag:t", "9000000"]).await;
    }
}

/// Applies the event until Redis refuses nothing. A drain is done to its end.
async fn apply_again(server: &Server, case: &Case) {
    let cache = server.cache().await;
    for _ in 0..TRIES {
        let Ok(applied) = try_apply(&cache, std::slice::from_ref(&case.event)).await else {
            cache.probe().await.unwrap();
            continue;
        };
        match applied.unsettled.as_slice() {
            [] => return,
            [(_, EffectOutcome::Slow)] => {
                let stop = CancellationToken::new();
                assert!(cache.drain_tag("t", &stop, |_, _| {}).await.unwrap().complete);
                return;
            }
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    panic!("{}: still refused", case.name);
}

async fn every_permission_in_turn(mut server: Server) {
    let rules = server.rules();
    let mut failures = Vec::new();
    for case in cases() {
        let mut refused = 0;
        for rule in rules.iter().filter(|rule| rule.starts_with(['+', '~'])) {
            server.grant(&rules).await;
            prepare(&mut server, &case).await;
            let cache = server.cache().await;
            let others: Vec<String> =
                rules.iter().filter(|other| *other != rule).cloned().collect();
            server.grant(&others).await;
            let applied = try_apply(&cache, std::slice::from_ref(&case.event)).await;
            refused += u32::from(applied.map_or(true, |applied| !applied.unsettled.is_empty()));
            server.grant(&rules).await;
            apply_again(&server, &case).await;
            let stale = stale(&mut server, &case).await;
            if stale > 0 {
                failures.push(format!("{} without {rule}: {stale} stale", case.name));
            }
        }
        assert!(refused > 0, "{}: no permission is needed", case.name);
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[tokio::test]
async fn an_event_refused_for_a_missing_permission_takes_effect_once_it_is_granted() {
    every_permission_in_turn(Server::single().await).await;
}

#[tokio::test]
async fn an_event_refused_for_a_missing_permission_takes_effect_in_a_cluster_once_it_is_granted() {
    every_permission_in_turn(Server::cluster().await).await;
}

/// A value that Redis refuses to store must not leave the old one, and the event may still store it
/// later. Neither may a life that Redis refuses to shorten.
async fn no_old_value_stays(mut server: Server) {
    let rules = server.rules();
    let new = |tags: &[&str]| effect(0, "shop:k", write("new", HOUR, tags));
    let warm = Action::Warm(Box::new(Warm {
        loader: LoaderId(0),
        url: "http://127.0.0.1:1/".into(),
        expiry: HOUR,
        tags: Vec::new(),
        stale: Stale::Serve,
        only: Only::Always,
    }));
    for (name, event, lacks) in [
        ("a write", new(&[]), &["+set"][..]),
        ("a tagged write", new(&["t"]), &["+set"][..]),
        ("a tagged write without its set", new(&["t"]), &["+sadd"][..]),
        ("a write with a version", post("2", 2, new(&[])), &["+set"][..]),
        ("a tagged write with a version", post("2", 2, new(&["t"])), &["+set"][..]),
        (
            "a tagged write with a version without its set",
            post("2", 2, new(&["t"])),
            &["+sadd"][..],
        ),
        (
            "a write with a version without scripts",
            post("2", 2, new(&[])),
            &["+eval", "+evalsha"][..],
        ),
        ("an expire", effect(0, "shop:k", Action::Expire(HOUR)), &["+pexpire"][..]),
        ("a warm that serves the old value", effect(0, "shop:k", warm.clone()), &["+pexpire"][..]),
    ] {
        let case = Case {
            name,
            before: vec![effect(0, "shop:k", write("old", THEN, &[]))],
            members: 0,
            set_expires: false,
            event,
        };
        server.grant(&rules).await;
        prepare(&mut server, &case).await;
        let cache = server.cache().await;
        let mut others: Vec<String> =
            rules.iter().filter(|rule| !lacks.contains(&rule.as_str())).cloned().collect();
        assert_eq!(others.len() + lacks.len(), rules.len(), "{lacks:?} are not documented");
        // Own keys stay permitted.
        others.push(format!("({} ~unstale:*)", lacks.join(" ")));
        server.grant(&others).await;
        let applied = try_apply(&cache, std::slice::from_ref(&case.event)).await.unwrap();
        assert!(
            matches!(
                applied.unsettled[..],
                [(_, EffectOutcome::Dead { may_be_permitted: true, .. })]
            ),
            "{name}: {applied:?}"
        );
        let value = async |server: &mut Server| {
            server.ask::<Option<String>>(&["GET", "shop:k"]).await.unwrap_or_default()
        };
        assert_eq!(value(&mut server).await, "", "{name}");
        let older = post("1", 3, effect(0, "shop:k", write("older", THEN, &[])));
        server.grant(&rules).await;
        let is_write = matches!(case.event.action, Action::Write(_));
        if is_write {
            try_apply(&cache, &[older]).await.unwrap();
            let is_kept_out = case.event.version.is_some() && lacks[0] != "+eval";
            assert_eq!(value(&mut server).await.is_empty(), is_kept_out, "{name}");
            apply_again(&server, &case).await;
            assert_eq!(value(&mut server).await, "new", "{name}");
        }
    }
}

#[tokio::test]
async fn no_old_value_stays_where_redis_refuses_the_new_one() {
    no_old_value_stays(Server::single().await).await;
}

#[tokio::test]
async fn no_old_value_stays_in_a_cluster_where_redis_refuses_the_new_one() {
    no_old_value_stays(Server::cluster().await).await;
}

/// Commands that maintenance of tags uses beside those that any script needs.
const OF_MAINTENANCE: [&str; 7] =
    ["+sadd", "+srem", "+persist", "+pexpire", "+pttl", "+smismember", "+exists"];

/// A member whose key seems to be gone is set aside, and returns if it has its key again. It must
/// belong to its tag at any time, with any refused command.
async fn members_stay_in_their_tag(mut server: Server) {
    let rules = server.rules();
    let aside_ms = 100;
    let mut failures = Vec::new();
    for rule in OF_MAINTENANCE {
        let others: Vec<String> = rules.iter().filter(|other| *other != rule).cloned().collect();
        assert_eq!(others.len() + 1, rules.len(), "{rule} is not documented");
        for (is_second_look, ttl) in
            [(false, None), (false, Some("9000000")), (true, None), (true, Some("9000000"))]
        {
            server.grant(&rules).await;
            server.on_each(&["FLUSHALL"]).await;
            server.ask::<()>(&["SADD", "cache_tag:t", "shop:k"]).await;
            if let Some(ttl) = ttl {
                server.ask::<()>(&["PEXPIRE", "cache_tag:t", ttl]).await;
            }
            let cache = server.cache().await.setting_aside_for(Duration::from_millis(aside_ms));
            if is_second_look {
                assert_eq!(cache.maintain_slice(b"cache_tag:t", 0, false).await.unwrap().gone, 1);
                server.ask::<()>(&["SET", "shop:k", "old"]).await;
                server.grant(&others).await;
                let look =
                    async || !matches!(cache.take_second_look(b"cache_tag:t").await, Ok(false));
                wait_until(Duration::from_secs(10), "the second look is refused or done", look)
                    .await;
            } else {
                server.grant(&others).await;
                let _refused = cache.maintain_slice(b"cache_tag:t", 0, false).await;
                server.ask::<()>(&["SET", "shop:k", "old"]).await;
            }
            server.grant(&rules).await;
            let case = Case {
                name: rule,
                before: vec![],
                members: 0,
                set_expires: false,
                event: effect(0, "t", Action::InvalidateTag),
            };
            apply_again(&server, &case).await;
            if stale(&mut server, &case).await > 0 {
                failures.push(format!("second look {is_second_look}, TTL {ttl:?}, without {rule}"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[tokio::test]
async fn members_stay_in_their_tag_though_a_permission_is_missing() {
    members_stay_in_their_tag(Server::single().await).await;
}

#[tokio::test]
async fn members_stay_in_their_tag_in_a_cluster_though_a_permission_is_missing() {
    members_stay_in_their_tag(Server::cluster().await).await;
}
