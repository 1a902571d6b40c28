//! Warnings about an open port at start, and secrets from files.

use super::Jwks;
use super::tokens::Signer;
use crate::harness::{Program, Stack, get};

pub async fn open_port(stack: Stack) {
    let open = "callers are not authenticated";
    // It ends because there is no database, after the warnings about its port.
    let run = async |more: &[&str]| {
        let nowhere = "postgres://nobody@127.0.0.1:1/none";
        let arguments = ["--database-url", nowhere, "--startup-timeout", "0s"];
        let arguments = [&arguments[..], more].concat();
        Program::finish(Program::serving(&stack, &arguments)).await.stderr
    };
    let warnings = |log: &str, what: &str| log.lines().filter(|line| line.contains(what)).count();
    let log = run(&["--grpc-addr", "0.0.0.0:0"]).await;
    assert_eq!(warnings(&log, open), 1, "{log}");
    let log = run(&["--grpc-addr", "127.0.0.1:0"]).await;
    assert_eq!(warnings(&log, open), 0, "{log}");
    let jwks = Jwks::of(&[&Signer::es256("ours")]);
    let arguments = [&["--grpc-addr", "0.0.0.0:0"][..], &jwks.arguments()].concat();
    let log = run(&arguments).await;
    assert_eq!(warnings(&log, open), 0, "{log}");
    assert_eq!(warnings(&log, "tokens are accepted without TLS"), 1, "{log}");
}

pub async fn secrets(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let file = directory.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let database = file("database", &format!("{}\n", stack.database_url));
    let redis = file("redis", &format!("{}\r\n", stack.redis_url));
    let nothing = file("nothing", "\n");
    let ended = Program::run(&["migrate", "--database-url-file", &database]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    // A default value counts as not given.
    let defaults = [
        ["--database-url", "postgres://hotshelf:hotshelf@localhost:5432/hotshelf"],
        ["--redis-url", "redis://localhost:6379"],
        ["--database-url-file", &database],
        ["--redis-url-file", &redis],
    ];
    let program = Program::serve(&stack, defaults.as_flattened()).await;
    assert_eq!(program.admin("/readyz").await, (200, "ready\n".to_owned()));
    program.client().await.get_product(get(id)).await.unwrap();
    for (flag, file) in [("--redis-url-file", &*nothing), ("--database-url-file", "/nonexistent")] {
        let ended = Program::run(&["serve", flag, file]).await;
        let name = flag.trim_start_matches("--").to_uppercase().replace('-', "_");
        let begin = format!("hotshelf: {name} {file} cannot be used: ");
        assert!(ended.stderr.starts_with(&begin), "{}", ended.stderr);
        assert_eq!((ended.code, ended.stderr.lines().count()), (Some(64), 1), "{}", ended.stderr);
    }
}
