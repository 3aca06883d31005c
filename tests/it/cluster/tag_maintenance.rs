//! `unstale tags gc` in a cluster.

use std::process::{Command, Stdio};

use redis::AsyncCommands;
use redis::cluster_async::ClusterConnection;

use super::members;
use crate::support::RedisCluster;

async fn aside(redis: &mut ClusterConnection, tag: &str) -> usize {
    let mut all = 0;
    for place in 0..4 {
        all += redis
            .scard::<_, usize>(format!("unstale:drain/{{cache_tag:{tag}}}:aside{place}"))
            .await
            .unwrap();
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_scans_all_primaries() {
    let cluster = RedisCluster::start().await;
    let mut redis = cluster.client().await;
    for tag in 0..12 {
        for n in 0..5 {
            let _: () = redis.sadd(format!("cache_tag:{tag}"), format!("{tag}:{n}")).await.unwrap();
        }
        let _: () = redis.set(format!("{tag}:0"), "v").await.unwrap();
    }
    let gc = async |args: &'static [&'static str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
        command
            .args(["tags", "gc"])
            .args(args)
            .env_clear()
            .env("UNSTALE_REDIS_MODE", "cluster")
            .env("UNSTALE_REDIS_URL", cluster.urls());
        command.env("UNSTALE_LOG", "warn").stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(
        gc(&["--dry-run"]).await,
        (Some(0), "would remove 48 of 60 members from 12 tags\n".to_owned())
    );
    assert_eq!(gc(&[]).await, (Some(0), "removed 48 of 60 members from 12 tags\n".to_owned()));
    for tag in 0..12 {
        assert_eq!(members(&mut redis, &tag.to_string()).await, [format!("{tag}:0")]);
        assert_eq!(aside(&mut redis, &tag.to_string()).await, 0);
    }
}
