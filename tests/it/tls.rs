//! Tests against real TLS servers: unusable certificates, and a login by a client's certificate.

use std::path::Path;
use std::process::{Command, Output};

use crate::end_to_end::stage::Stage;
use crate::support::{RabbitMq, Redis, Worker, port, wait_until};

const SOON: std::time::Duration = std::time::Duration::from_secs(30);

/// Creates an authority in `dir` (`ca.pem`, `ca.key`), and a certificate that it signed
/// (`server.pem`, `server.key`).
fn certificates(dir: &Path, authority: &str) {
    let openssl = |args: &[&str]| {
        let Output { status, stderr, .. } =
            Command::new("openssl").args(args).current_dir(dir).output().unwrap();
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    };
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let root = ["req", "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", authority];
    openssl(&[&root[..], &new_key].concat());
    let request = ["req", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server"];
    openssl(&[&request[..], &new_key].concat());
    std::fs::write(
        dir.join("extensions"),
        "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
    )
    .unwrap();
    openssl(&[
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-extfile",
        "extensions",
        "-out",
        "server.pem",
    ]);
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_no_authority_of_ours_signed_is_named_as_such() {
    let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(ours.path(), "/CN=ours");
    certificates(other.path(), "/CN=other");
    let tls_port = port::free().to_string();
    let [ca, certificate, key] =
        ["ca.pem", "server.pem", "server.key"].map(|name| path(ours.path(), name));
    let redis = Redis::start_with(&[
        "--tls-port",
        &tls_port,
        "--tls-ca-cert-file",
        &ca,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-auth-clients",
        "no",
    ])
    .await;
    let url = format!("rediss://127.0.0.1:{tls_port}/0");
    let plain = format!("rediss://{}/0", redis.addr());
    let unencrypted = format!("redis://127.0.0.1:{tls_port}/0");
    let named = format!("rediss://localhost:{tls_port}/0");
    let other_ca = path(other.path(), "ca.pem");
    let schemas = tempfile::tempdir().unwrap();
    std::fs::write(
        schemas.path().join("a.yaml"),
        "events: { a.b: { effects: [ { delete: x } ] } }",
    )
    .unwrap();
    for (url, ca, cause) in [
        (
            &url,
            &other_ca,
            "no certificate that we trust has signed the server's: set UNSTALE_REDIS_TLS_CA",
        ),
        (
            &named,
            &ca,
            "the server's certificate is for other names than the host in UNSTALE_REDIS_URL",
        ),
        (&plain, &ca, "write redis:// instead of rediss:// in UNSTALE_REDIS_URL"),
        (
            &unencrypted,
            &String::new(),
            "if the port speaks TLS, write rediss:// instead of redis:// in UNSTALE_REDIS_URL",
        ),
    ] {
        let mut settings = vec![
            ("UNSTALE_AMQP_URL", "amqp://127.0.0.1:1/%2f"),
            ("UNSTALE_SCHEMAS", schemas.path().to_str().unwrap()),
            ("UNSTALE_REDIS_URL", url.as_str()),
        ];
        if !ca.is_empty() {
            settings.push(("UNSTALE_REDIS_TLS_CA_FILE", ca.as_str()));
        }
        let worker = Worker::start(&settings);
        wait_until(SOON, &format!("{cause}: {}", worker.stderr()), async || {
            worker.stderr().contains(cause)
        })
        .await;
        worker.kill();
    }
}

#[test]
fn a_key_that_does_not_fit_its_certificate_ends_the_start_with_64() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(one.path(), "/CN=one");
    certificates(other.path(), "/CN=other");
    for (server, url) in [("AMQP", "amqps://127.0.0.1:1/%2f"), ("REDIS", "rediss://127.0.0.1:1/0")]
    {
        let ended = Command::new(env!("CARGO_BIN_EXE_unstale"))
            .arg("run")
            .env_clear()
            .env(format!("UNSTALE_{server}_URL"), url)
            .env(format!("UNSTALE_{server}_TLS_CERT_FILE"), path(one.path(), "server.pem"))
            .env(format!("UNSTALE_{server}_TLS_KEY_FILE"), path(other.path(), "server.key"))
            .output()
            .unwrap();
        let error = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(64), "{error}");
        assert!(
            error.contains(&format!("UNSTALE_{server}_TLS_KEY: not the private key of the certificate in UNSTALE_{server}_TLS_CERT")),
            "{error}"
        );
        assert!(!error.contains("BEGIN"), "{error}");
    }
}

/// Copies the fixtures to a folder in `/tmp`. A server whose root directory is another one reads
/// the same `/tmp`.
fn fixtures() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["ca.pem", "server.pem", "server.key.pem", "client.pem", "client.key.pem"] {
        std::fs::copy(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name),
            folder.path().join(name),
        )
        .unwrap();
    }
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_certificate_is_a_login_to_rabbitmq() {
    let (files, tls_port) = (fixtures(), port::free());
    let file = |name: &str| path(files.path(), name);
    let config = format!(
        "listeners.ssl.1 = 127.0.0.1:{tls_port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n\
         ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\nssl_cert_login_from = common_name\n\
         auth_mechanisms.1 = EXTERNAL\nauth_mechanisms.2 = PLAIN\n",
        file("ca.pem"),
        file("server.pem"),
        file("server.key.pem"),
    );
    let broker = RabbitMq::start_with(&["rabbitmq_auth_mechanism_ssl"], &config).await;
    // The certificate's common name.
    broker.add_user("unstale test client", "unused", "/", [".*"; 3]).await;
    let stage =
        Stage::on_broker(&broker, &[("a.yaml", "events: { a.b: { effects: [ { delete: x } ] } }")])
            .await;
    stage.set("x", "old").await;
    let url = format!("amqps://localhost:{tls_port}/%2f?auth_mechanism=external");
    let worker = stage
        .worker(&[
            ("UNSTALE_AMQP_URL", &url),
            ("UNSTALE_AMQP_TLS_CA_FILE", &file("ca.pem")),
            ("UNSTALE_AMQP_TLS_CERT_FILE", &file("client.pem")),
            ("UNSTALE_AMQP_TLS_KEY_FILE", &file("client.key.pem")),
        ])
        .await;
    stage.publish("a.b", "{}").await;
    stage.wait_gone("x").await;
    let connections = broker.ctl(&["list_connections", "user", "auth_mechanism"]).await;
    assert!(connections.contains("unstale test client\tEXTERNAL"), "{connections}");
    assert!(worker.terminate().await.success());
}
