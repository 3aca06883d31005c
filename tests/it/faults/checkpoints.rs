//! A batch that changes the checkpoint of its worker is not applied without end.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::end_to_end::stage::Stage;
use crate::support::{Flow, Proxy, Tap, Way};

const USERS: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

const CULPRIT: &str = "user:culprit";

const NEIGHBOURS: u32 = 30;

/// Deletes the checkpoint whenever that one key is deleted, as a foreign script may.
fn deletes_checkpoint(redis: String, checkpoint: String) -> Tap {
    Tap::new(move |_, way, bytes| {
        if way == Way::ToServer
            && bytes.windows(CULPRIT.len()).any(|window| window == CULPRIT.as_bytes())
        {
            let mut connection = TcpStream::connect(&redis).unwrap();
            write!(connection, "DEL {checkpoint}\r\n").unwrap();
            let mut answer = [0; 4];
            connection.read_exact(&mut answer).unwrap();
        }
        Flow::Pass
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_that_breaks_the_checkpoint_is_dead_lettered_and_its_neighbours_are_applied() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let settings = [("UNSTALE_HISTORY", "off")];
    assert_eq!(
        stage.worker(&settings).await.terminate().await.code(),
        Some(0),
        "it declared the queues"
    );
    let user = async |id: &str| {
        stage.set(&format!("user:{id}"), "old").await;
        stage.publish("user.updated", &format!(r#"{{"id":"{id}"}}"#)).await;
    };
    for id in 0..NEIGHBOURS {
        if id == NEIGHBOURS / 2 {
            user("culprit").await;
        }
        user(&id.to_string()).await;
    }
    let tap = deletes_checkpoint(stage.redis.addr(), format!("unstale:mark:{}", stage.queue));
    let proxy = Proxy::start_tapped(&stage.redis.addr(), tap).await;
    let redis_url = format!("redis://{}/0", proxy.addr());
    let worker = stage.worker(&[settings[0], ("UNSTALE_REDIS_URL", &redis_url)]).await;
    let letter = stage.dead_letters(1).await.pop().unwrap();
    assert_eq!(letter.body, br#"{"id":"culprit"}"#);
    assert_eq!(letter.header("unstale-reason").as_deref(), Some("unresolvable"));
    let error = letter.header("unstale-error").unwrap();
    assert!(error.contains("checkpoint"), "{error}");
    for id in 0..NEIGHBOURS {
        stage.wait_gone(&format!("user:{id}")).await;
    }
    stage.wait_settled(&[&worker]).await;
    assert!(
        matches!(worker.get("/readyz").await, Some((200, _))),
        "{:?}",
        worker.get("/readyz").await
    );
    assert_eq!(stage.ready(".dead").await, 0, "no neighbour is blamed");
}
