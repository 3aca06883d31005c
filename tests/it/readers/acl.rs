//! The documented permissions for readers are sufficient, and each of them is necessary.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use unstale_reader::{Options, Outcome, Reader};

use super::{HOUR, Outcomes};
use crate::support::{self, Redis};

fn documented() -> Vec<String> {
    let page = include_str!("../../../docs/reference/reader-scripts.md");
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix("ACL SETUSER reader "))
        .expect("the page names the ACL");
    line.split_whitespace()
        .map(|rule| if rule == ">PASSWORD" { ">secret".to_owned() } else { rule.to_owned() })
        .collect()
}

/// In a Redis that knows nothing, as that user: a read with tags, one that finds it, one that
/// fails. Whether all of it went as for a free user.
async fn everything(server: &Redis, admin: &mut MultiplexedConnection, rules: &[String]) -> bool {
    redis::cmd("ACL")
        .arg("SETUSER")
        .arg("reader")
        .arg("reset")
        .arg(rules)
        .exec_async(admin)
        .await
        .unwrap();
    redis::cmd("FLUSHALL").exec_async(admin).await.unwrap();
    redis::cmd("SCRIPT").arg("FLUSH").exec_async(admin).await.unwrap();
    let client = redis::Client::open(format!("redis://reader:secret@{}/0", server.addr())).unwrap();
    let Ok(connection) = support::redis::connect(&client).await else { return false };
    let outcomes = Outcomes::default();
    let plain = Reader::new(connection.clone(), outcomes.options());
    let early =
        Reader::new(connection, Options { stale: Duration::from_secs(1), ..outcomes.options() });
    let load = async || Ok::<_, ()>(Some(b"v".to_vec()));
    for n in 0..2 {
        plain.get_or_load("shop:k", load, HOUR, ["t"]).await.unwrap();
        plain.get_or_load(&format!("shop:{n}"), load, HOUR, ["t"]).await.unwrap();
    }
    early.get_or_load("shop:k", load, HOUR, ["t"]).await.unwrap();
    let _ = plain.get_or_load("shop:none", async || Err::<Option<Vec<u8>>, _>(()), HOUR, ()).await;
    let left = redis::cmd("EXISTS")
        .arg("unstale:lease/{shop:none}")
        .query_async::<u8>(admin)
        .await
        .unwrap();
    outcomes.take()
        == [Outcome::Filled, Outcome::Filled, Outcome::Hit, Outcome::Filled, Outcome::Hit]
        && left == 0
}

#[tokio::test]
async fn the_documented_acl_for_readers_is_sufficient_and_minimal() {
    let server = Redis::start().await;
    let mut admin = server.connection().await;
    let rules = documented();
    assert!(everything(&server, &mut admin, &rules).await);
    for rule in rules.iter().filter(|rule| rule.starts_with(['+', '~'])) {
        let others: Vec<String> = rules.iter().filter(|other| *other != rule).cloned().collect();
        assert!(!everything(&server, &mut admin, &others).await, "{rule} is not needed");
    }
}
