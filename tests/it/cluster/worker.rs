//! Every verb from an application's publish to the cluster, by the real worker.

use redis::AsyncCommands;
use redis::cluster_async::ClusterConnection;

use super::{get, members};
use crate::cache::Names;
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{self, wait_until};

fn rules(prefix: &str) -> String {
    format!(
        r#"
defaults: {{ ttl: 1h, key_prefix: "{prefix}:" }}
loaders: {{ pages: {{ url: "{{vars.PAGES_URL}}" }} }}
events:
  product.updated:
    effects:
      - delete: ["product:{{id}}", "page:{{id}}"]
      - invalidate_tags: ["{prefix}:category:{{previous.category?}}", "{prefix}:all"]
      - bump_version: "product:{{id}}:version"
      - expire: "product:{{id}}:related"
        ttl: 30s
      - write: "product:{{id}}:summary"
        value: {{ id: "{{id}}", name: "{{name}}" }}
        tags: ["{prefix}:category:{{category}}", "{prefix}:all"]
      - warm: "product:{{id}}:page"
        from: "pages:/products/{{id}}"
        tags: ["{prefix}:category:{{category}}"]
      - each: data.prices
        delete: "price:{{item.list}}:{{id}}"
"#
    )
}

async fn gone(redis: &mut ClusterConnection, key: &str) {
    wait_until(SOON, &format!("{key} is gone"), async || get(redis, key).await.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_works_from_publish_to_cluster() {
    let (names, cluster) = (Names::new(), support::redis_cluster().await);
    let prefix = names.of("shop");
    let mut redis = cluster.client().await;
    let stage = Stage::new(&[("products.yaml", &rules(&prefix))]).await;
    let app = axum::Router::new().route(
        "/products/{id}",
        axum::routing::get(|axum::extract::Path(id): axum::extract::Path<u32>| async move {
            format!("page of {id}")
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pages_url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });

    let key = |name: &str| format!("{prefix}:{name}");
    for name in [
        "product:7",
        "page:7",
        "product:7:version",
        "product:7:related",
        "product:7:summary",
        "price:eur:7",
        "price:usd:7",
    ] {
        let _: () = redis.set(key(name), "1").await.unwrap();
    }
    // A tag of the old category that one round trip cannot finish, and one of all that can.
    for (tag, count) in [("category:games", 700), ("all", 40)] {
        for n in 0..count {
            let member = format!("{prefix}:{tag}:{n}");
            let _: () = redis.set(&member, "old").await.unwrap();
            let _: () = redis.sadd(format!("cache_tag:{prefix}:{tag}"), member).await.unwrap();
        }
    }
    let urls = cluster.urls();
    let settings = [
        ("UNSTALE_REDIS_MODE", "cluster"),
        ("UNSTALE_REDIS_URL", urls.as_str()),
        ("UNSTALE_VAR_PAGES_URL", &pages_url),
    ];
    let worker = stage.worker(&settings).await;
    let body = r#"{"type":"product.updated","data":{"id":7,"category":"toys","name":"Kite","prices":[{"list":"eur"},{"list":"usd"}]},
        "previous":{"category":"games"}}"#;
    stage.publish("product.updated", body).await;

    for name in [
        "product:7",
        "page:7",
        "price:eur:7",
        "price:usd:7",
        "category:games:0",
        "category:games:699",
        "all:0",
        "all:39",
    ] {
        gone(&mut redis, &key(name)).await;
    }
    let page = key("product:7:page");
    wait_until(SOON, "the page is warm", async || {
        get(&mut redis, &page).await.as_deref() == Some("page of 7")
    })
    .await;
    assert_eq!(get(&mut redis, &key("product:7:version")).await.as_deref(), Some("2"));
    assert_eq!(
        get(&mut redis, &key("product:7:summary")).await.as_deref(),
        Some(r#"{"id":7,"name":"Kite"}"#)
    );
    let ttl: i64 = redis.pttl(key("product:7:related")).await.unwrap();
    assert!((1..=30_000).contains(&ttl), "{ttl}");
    assert_eq!(
        members(&mut redis, &format!("{prefix}:category:toys")).await,
        [key("product:7:page"), key("product:7:summary")]
    );
    assert_eq!(members(&mut redis, &format!("{prefix}:all")).await, [key("product:7:summary")]);
    stage.wait_settled(&[&worker]).await;

    // What the tag holds now goes with the next event of another product.
    let body = r#"{"type":"product.updated","data":{"id":8,"category":"games","name":"Chess","prices":[]},"previous":{"category":"toys"}}"#;
    stage.publish("product.updated", body).await;
    gone(&mut redis, &key("product:7:summary")).await;
    gone(&mut redis, &page).await;
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.ready(".dead").await, 0, "{}", worker.stderr());
}
