//! `rediss://` with a private CA and a client's certificate.

use std::path::PathBuf;

use unstale::cache::Cache;
use unstale::config::{RedisConfig, TlsConfig};
use unstale::registry::Action;

use super::{apply, config, effect};
use crate::support::{Redis, port};

fn file(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tls")).join(name)
}

#[tokio::test]
async fn redis_over_tls_takes_a_private_authority_and_a_client_certificate() {
    let port = port::free().to_string();
    // A server of another root sees temporary files, and not this repository.
    let seen = tempfile::tempdir().unwrap();
    let [ca, cert, key] = ["ca.pem", "server.pem", "server.key.pem"].map(|name| {
        let copy = seen.path().join(name);
        std::fs::copy(file(name), &copy).unwrap();
        copy.to_str().unwrap().to_owned()
    });
    let _server = Redis::start_with(&[
        "--tls-port",
        &port,
        "--tls-ca-cert-file",
        &ca,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-auth-clients",
        "yes",
    ])
    .await;
    let text = |name| std::fs::read_to_string(file(name)).ok();
    let connect = |tls| {
        Cache::connect(&RedisConfig { tls, ..config(&format!("rediss://localhost:{port}/0")) }, "q")
            .unwrap()
    };
    let whole = TlsConfig {
        ca_pem: text("ca.pem"),
        cert_pem: text("client.pem"),
        key_pem: text("client.key.pem"),
    };

    let cache = connect(whole.clone());
    cache.probe().await.unwrap();
    assert_eq!(apply(&cache, &[effect(0, "k", Action::Delete)]).await.unsettled, []);
    for lacking in [
        TlsConfig { cert_pem: None, key_pem: None, ..whole.clone() },
        TlsConfig { ca_pem: None, ..whole },
    ] {
        connect(lacking).probe().await.unwrap_err();
    }
}
