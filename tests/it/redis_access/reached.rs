//! The ways to Redis: a socket, TLS, sentinels.

use std::time::Duration;

use devstack::{Redis, RedisOptions, Role};

use super::Served;
use crate::harness::{Authority, Private, Program, eventually};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn redis(settings: &[(&str, &str)]) -> Redis {
    let settings = settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    Redis::start(RedisOptions { settings: settings.collect(), ..RedisOptions::default() }).unwrap()
}

/// Asserts that instances with these options share entries through Redis.
async fn shared(world: &Private, url: &str, more: &[&str]) {
    let (one, other) = tokio::join!(Served::by(world, url, more), Served::by(world, url, more));
    let id = world.insert("lamp").await;
    assert_eq!(one.read(id).await, "hotshelf; fwd=miss; detail=postgres");
    assert_eq!(other.read(id).await, "hotshelf; hit; detail=redis");
    // A hint arrives on a connection of its own.
    assert_eq!(other.metric("hotshelf_redis_breakers_open{dependency=\"commands\"}").await, 0.0);
}

pub async fn unix_socket(world: Private) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("redis.sock");
    let socket = socket.to_str().unwrap();
    let redis = redis(&[("unixsocket", socket)]);
    redis.command(&["CONFIG", "SET", "requirepass", "secret#1"]).unwrap();
    shared(&world, &format!("unix://{socket}?db=3&password=secret%231"), &[]).await;
    let keyspace = redis.command(&["INFO", "keyspace"]);
    assert!(keyspace.is_err(), "it needs the password: {keyspace:?}");
}

pub async fn tls(world: Private) {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (ca, cert, key) = (file("ca.pem"), file("cert.pem"), file("key.pem"));
    let (client_cert, client_key) = (file("client.pem"), file("client.key"));
    let authority = Authority::new("redis");
    authority.write(ca.as_ref());
    authority.server(DAY).write(cert.as_ref(), key.as_ref());
    authority.client("hotshelf", None).write(client_cert.as_ref(), client_key.as_ref());
    let port = crate::harness::free_port().to_string();
    let _redis = redis(&[
        ("tls-port", &port),
        ("tls-ca-cert-file", &ca),
        ("tls-cert-file", &cert),
        ("tls-key-file", &key),
        ("tls-auth-clients", "yes"),
    ]);
    let url = format!("rediss://localhost:{port}");
    let authorities = ["--redis-tls-ca", &ca];
    let files = ["--redis-tls-cert", &client_cert, "--redis-tls-key", &client_key];
    shared(&world, &url, &[&authorities[..], &files].concat()).await;
    // Redis asks for a certificate.
    Served::by(&world, &url, &authorities).await.reports_once("certificate_required").await;
    Served::by(&world, &url, &files).await.reports_once("unknown_ca").await;
    for (more, words) in [
        (&["--redis-tls-ca", "/absent.pem"][..], "REDIS_TLS_CA: /absent.pem: No such file"),
        (&["--redis-tls-ca", &key], "has no certificate in PEM"),
        (&["--redis-tls-cert", &client_cert], "REDIS_TLS_CERT needs REDIS_TLS_KEY"),
        (&["--redis-tls-key", &client_key], "REDIS_TLS_KEY needs REDIS_TLS_CERT"),
        (&["--redis-tls-cert", &client_cert, "--redis-tls-key", &ca], "has no private key in PEM"),
        (
            &["--redis-tls-cert", &client_cert, "--redis-tls-key", &key],
            "does not go with the certificate",
        ),
    ] {
        let command = Program::serving(&world, &[&["--redis-url", &url], more].concat());
        let ended = Program::finish(command).await;
        assert_eq!(ended.code, Some(64), "{more:?}: {}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("hotshelf: ") && last.contains(words), "{more:?}: {last}");
    }
}

pub async fn sentinels(world: Private) {
    let (first, second) = (redis(&[]), redis(&[]));
    second.command(&["REPLICAOF", "127.0.0.1", &first.port().to_string()]).unwrap();
    eventually("it replicates", async || {
        second.command(&["INFO", "replication"]).unwrap().contains("master_link_status:up")
    })
    .await;
    let sentinel_of = Some(first.port());
    let sentinel = Redis::start(RedisOptions { sentinel_of, ..RedisOptions::default() }).unwrap();
    let url = format!("redis-sentinel://127.0.0.1:{}?sentinelServiceName=shop", sentinel.port());
    shared(&world, &url, &[]).await;
    eventually("the sentinel knows the replica", async || {
        sentinel.command(&["SENTINEL", "replicas", "shop"]).unwrap().contains("slave")
    })
    .await;
    let (one, other) = tokio::join!(Served::by(&world, &url, &[]), Served::by(&world, &url, &[]));
    first.kill();
    eventually("the replica is promoted", async || second.role().unwrap() == Role::Master).await;
    eventually("entries are shared through the new master", async || {
        let id = world.insert("lamp").await;
        one.read(id).await;
        other.read(id).await == "hotshelf; hit; detail=redis"
    })
    .await;
    // The old master comes back as a replica: nothing is written to it.
    first.start_again().unwrap();
    eventually("it follows", async || first.role().unwrap() == Role::Replica).await;
    let id = world.insert("lamp").await;
    one.read(id).await;
    assert_eq!(other.read(id).await, "hotshelf; hit; detail=redis");
}
