//! `hotshelf doctor`: what it prints and how it ends, and that `serve` says the same.

mod pooler;
mod problems;
mod table;

use serde_json::Value;

use crate::harness::{Ended, Private, Program, Stack, Suite, eventually};
use crate::redis_cluster_shapes::cluster;

pub fn register(suite: &mut Suite<'_>) {
    suite.both("doctor::where_everything_is_fine_it_says_so_and_ends_with_0", fine);
    suite.private("doctor::each_problem_has_a_sentence_that_serve_logs_too", problems::each);
    suite.private("doctor::servers_that_do_not_answer_do_not_stop_it", frozen);
    suite.private("doctor::a_replica_of_postgresql_is_named", replica);
    suite.private("doctor::slots_without_a_server_are_named", slots);
    suite.single("doctor::it_changes_nothing", changes_nothing);
    suite.single("doctor::the_exit_code_can_leave_out_warnings", exit_codes);
    pooler::register(suite);
}

/// Runs `doctor` with the options of this test's stack. `more` may also replace them.
pub async fn doctor(stack: &Stack, more: &[&str]) -> Ended {
    let mut command = Program::command(&["doctor"]);
    for pair in stack.options().iter().filter(|pair| !more.contains(&pair[0])) {
        command.args(pair);
    }
    command.args(more);
    Program::finish(command).await
}

/// All findings: subject, check, severity and sentence.
fn findings(ended: &Ended) -> Vec<[String; 4]> {
    let report: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| {
        panic!("{error}: {ended:?}");
    });
    let text = |value: &Value, name: &str| value[name].as_str().unwrap().to_owned();
    let mut found = Vec::new();
    for section in report["sections"].as_array().unwrap() {
        for finding in section["findings"].as_array().unwrap() {
            let [what, detail, cost, remedy] =
                ["what", "detail", "cost", "remedy"].map(|name| text(finding, name));
            let sentence = format!("{what} ({detail}): {cost}; {remedy}");
            let (check, severity) = (text(finding, "check"), text(finding, "severity"));
            found.push([text(section, "subject"), check, severity, sentence]);
        }
    }
    found
}

async fn fine(stack: Stack) {
    let table = doctor(&stack, &[]).await;
    assert_eq!(table.code, Some(0), "{table:?}");
    assert_eq!(table.stderr, "hotshelf: everything is fine\n");
    let checks = [
        "callers",
        "server",
        "primary",
        "settings",
        "connections",
        "clock",
        "latency",
        "schema",
        "table",
        "rights",
        "triggers",
        "outbox",
        "version",
        "memory",
        "role",
        "commands",
        "namespace",
    ];
    for check in checks {
        assert!(
            table.stdout.contains(&format!("\n  fine     {check} ")),
            "{check}: {}",
            table.stdout
        );
    }
    assert!(table.stdout.lines().all(|line| line.chars().count() <= 100), "{}", table.stdout);
    let json = doctor(&stack, &["--format", "json"]).await;
    assert_eq!(json.code, Some(0), "{json:?}");
    let found = findings(&json);
    assert!(found.iter().all(|[_, _, severity, _]| severity == "fine"), "{found:?}");
    let servers = found.iter().filter(|[_, check, ..]| check == "commands").count();
    let has_slots = found.iter().any(|[_, check, ..]| check == "slots");
    assert_eq!(servers, if has_slots { 3 } else { 1 }, "{found:?}");
}

/// Each of them is frozen, and the other is checked.
async fn frozen(world: Private) {
    let short = ["--redis-timeout", "100ms", "--database-statement-timeout", "1s"];
    let more = [&["--format", "json"][..], &short].concat();
    let checks = |found: &[[String; 4]], wanted: &str| {
        found.iter().any(|[_, check, severity, _]| check == wanted && severity == "fine")
    };
    world.postgres.pause();
    let ended = doctor(&world, &more).await;
    world.postgres.resume();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let found = findings(&ended);
    assert!(
        found.iter().any(|[.., sentence]| sentence.contains("no answer came in time")),
        "{found:?}"
    );
    assert!(checks(&found, "commands") && !checks(&found, "rights"), "{found:?}");
    world.redis.pause();
    let ended = doctor(&world, &more).await;
    world.redis.resume();
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let found = findings(&ended);
    assert!(
        found.iter().any(|[.., sentence]| sentence.contains("Redis cannot be reached")),
        "{found:?}"
    );
    assert!(checks(&found, "rights") && !checks(&found, "commands"), "{found:?}");
}

async fn replica(world: Private) {
    let replica = world.postgres.start_replica().unwrap();
    let url = replica.url_of(&world.namespace);
    let more = ["--database-url", &url, "--startup-timeout", "0s"];
    let ended = doctor(&world, &[&more[..], &["--format", "json"]].concat()).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let sentence = "the server is a read-only replica; DATABASE_URL must name the primary";
    let found = findings(&ended);
    let said = |[.., said]: &[String; 4]| said.replace(" (): ;", ";") == sentence;
    assert!(found.iter().any(said), "{found:?}");
    let ended = Program::finish(Program::serving(&world, &more)).await;
    assert!(ended.stderr.contains(sentence), "{ended:?}");
}

async fn slots(world: Private) {
    let node = cluster("16382", &[]);
    let url = format!("redis-cluster://127.0.0.1:{}", node.port());
    let more = ["--redis-url", &url];
    let ended = doctor(&world, &[&more[..], &["--format", "json"]].concat()).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let sentence = "some slots of the Redis cluster have no server";
    let found = findings(&ended);
    let said = |[.., said]: &[String; 4]| {
        said.contains(sentence) && said.contains("1 of 16384 slots") && said.contains("cluster fix")
    };
    assert!(found.iter().any(said), "{found:?}");
    let program = Program::serve(&world, &more).await;
    eventually("serve says so", async || program.log().contains(sentence)).await;
}

async fn changes_nothing(stack: Stack) {
    stack.insert("lamp").await;
    let state = "SELECT concat_ws(' ', (SELECT count(*) FROM hotshelf.outbox), (SELECT hotshelf_version FROM products), \
        (SELECT relayed || held_until::text FROM hotshelf.feed), (SELECT count(*) FROM hotshelf.marks), \
        (SELECT last_value FROM hotshelf.product_version))";
    let read =
        async || -> String { sqlx::query_scalar(state).fetch_one(&stack.sql).await.unwrap() };
    let (before, keys) = (read().await, stack.redis_keys().await);
    assert_eq!(doctor(&stack, &[]).await.code, Some(0));
    assert_eq!((read().await, stack.redis_keys().await), (before, keys));
}

async fn exit_codes(stack: Stack) {
    let down = ["--redis-url", "redis://127.0.0.1:1"];
    let ended = doctor(&stack, &down).await;
    assert_eq!((ended.code, &*ended.stderr), (Some(2), "hotshelf: errors: 0, warnings: 1\n"));
    let ended = doctor(&stack, &[&down[..], &["--fail-on", "error"]].concat()).await;
    assert_eq!((ended.code, &*ended.stderr), (Some(0), "hotshelf: errors: 0, warnings: 1\n"));
    let ended = doctor(&stack, &["--lease-wait", "1s"]).await;
    assert_eq!((ended.code, &*ended.stdout), (Some(64), ""), "as serve refuses it: {ended:?}");
}
