//! A failing loader: it is not called for a while, and delays nothing else.

use super::catalogue::Catalogue;
use super::stage::{SOON, Stage};
use crate::support::wait_until;

const RULES: &str = r#"
defaults: { ttl: 1h }
loaders:
  sick: { url: "{vars.SICK_URL}" }
  well: { url: "{vars.WELL_URL}" }
events:
  sick.changed: { effects: [ { warm: "sick:{id}", from: "sick:/{id}" } ] }
  well.changed: { effects: [ { warm: "well:{id}", from: "well:/{id}" }, { delete: "user:{id}" } ] }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_loader_that_is_down_is_left_alone_and_asked_again_once_it_is_well() {
    const EVENTS: usize = 60;
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let (sick, well) = (Catalogue::open(0).await, Catalogue::open(0).await);
    let settings = [
        ("UNSTALE_VAR_SICK_URL", sick.url.as_str()),
        ("UNSTALE_VAR_WELL_URL", &well.url),
        ("UNSTALE_WARM_CONCURRENCY", "2"),
        ("UNSTALE_RETRY_DELAYS", "1s,2s,4s"),
    ];
    let worker = stage.worker(&settings).await;
    let open = async |loader: &str| {
        worker.metrics().await.sum("unstale_loader_open", &[("loader", loader)])
    };
    assert!(
        worker.get("/metrics").await.unwrap().1.contains(r#"unstale_loader_open{loader="sick"} 0"#)
    );
    sick.fail_with(503);
    for id in 0..EVENTS {
        sick.set(&id.to_string(), "value");
        stage.publish("sick.changed", &format!(r#"{{"id":{id}}}"#)).await;
    }
    wait_until(SOON, "the breaker is open", async || open("sick").await == 1.0).await;
    wait_until(SOON, "all of them climb the ladder", async || {
        worker.metrics().await.sum("unstale_retries_total", &[]) >= 60.0
    })
    .await;
    let asked = sick.all_loads();
    assert!((5..12).contains(&asked), "{asked} loads for {EVENTS} events");
    assert!(worker.stderr().contains("loader circuit opened"), "{}", worker.stderr());

    well.set("1", "value");
    stage.set("user:1", "old").await;
    stage.publish("well.changed", r#"{"id":1}"#).await;
    stage.wait_gone("user:1").await;
    wait_until(SOON, "the other loader is asked", async || stage.exists("well:1").await).await;
    assert_eq!(open("well").await, 0.0);

    let retries = async || worker.metrics().await.sum("unstale_retries_total", &[]);
    wait_until(2 * SOON, "each comes back more often than it has attempts", async || {
        retries().await >= 5.0 * EVENTS as f64
    })
    .await;
    assert_eq!(stage.ready(".dead").await, 0, "a load that is refused costs no attempt");

    sick.fail_with(None);
    wait_until(2 * SOON, "every key is filled", async || {
        for id in 0..EVENTS {
            if !stage.exists(&format!("sick:{id}")).await {
                return false;
            }
        }
        true
    })
    .await;
    assert_eq!(open("sick").await, 0.0);
    assert!(worker.stderr().contains("loader circuit closed"), "{}", worker.stderr());
    assert_eq!(stage.ready(".dead").await, 0);
}
