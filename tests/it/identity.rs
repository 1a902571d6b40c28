//! Two databases with the same Redis and namespace: the instances of each serve its own products, and report the other.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use hotshelf::config::ServeArgs;
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Executor};
use tonic::Code;

use crate::harness::{Node, Program, Stack, Suite, connect, eventually};
use crate::newest_wins::rename;

pub fn register(suite: &mut Suite<'_>) {
    suite.both("identity::a_copy_of_the_database_is_another_catalogue", copy);
    suite.both("identity::another_database_is_another_catalogue", different);
    suite.both("identity::a_dump_that_was_restored_is_another_catalogue", restored);
    suite.single("identity::two_databases_in_one_namespace_are_reported_on_both", reported);
    suite.single("identity::outbox_rows_of_another_cluster_do_no_harm", foreign_rows);
}

/// The URL of another database of the same server.
fn url_of(stack: &Stack, database: &str) -> String {
    let (server, _) = stack.database_url.rsplit_once('/').unwrap();
    format!("{server}/{database}")
}

/// Makes a database from a template: this test's database, or the one that both come from.
async fn copy_of(stack: &Stack, template: &str) -> (String, PgPool) {
    let name = format!("{}_other", stack.namespace);
    let admin = connect(&url_of(stack, "hotshelf"), 1);
    let end = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{template}'"
    );
    let create = format!("CREATE DATABASE {name} TEMPLATE {template}");
    eventually("the database can be copied", || async {
        admin.execute(AssertSqlSafe(end.clone())).await.unwrap();
        admin.execute(AssertSqlSafe(create.clone())).await.is_ok()
    })
    .await;
    admin.close().await;
    let url = url_of(stack, &name);
    let sql = connect(&url, 3);
    (url, sql)
}

async fn node_on(stack: &Stack, url: &str) -> Node {
    let options = |args: &mut ServeArgs| args.database.database_url = url.to_owned();
    stack.node_with(options).await
}

/// Two instances on each database, with the same id and versions for different products.
async fn apart(stack: &Stack, url: &str, sql: &PgPool, id: i64) {
    let (a, b) = tokio::join!(stack.node(), node_on(stack, url));
    let (a2, b2) = tokio::join!(stack.node(), node_on(stack, url));
    for round in 0..10 {
        let (ours, theirs) = (format!("ours {round}"), format!("theirs {round}"));
        if round % 2 == 0 {
            tokio::join!(rename(&a, id, &ours), rename(&b, id, &theirs));
        } else {
            let update = |name: &str| {
                AssertSqlSafe(format!("UPDATE products SET name = '{name}' WHERE id = {id}"))
            };
            let (one, other) =
                tokio::join!(stack.sql.execute(update(&ours)), sql.execute(update(&theirs)));
            one.and(other).unwrap();
        }
        for (node, own, foreign) in [
            (&a, &ours, "theirs"),
            (&a2, &ours, "theirs"),
            (&b, &theirs, "ours"),
            (&b2, &theirs, "ours"),
        ] {
            eventually("it has its own", || async {
                let name = node.product(id).await.name;
                assert!(!name.starts_with(foreign), "{name} in the other catalogue");
                name == *own
            })
            .await;
        }
    }
    // Instances with empty memory read Redis.
    let (a3, b3) = tokio::join!(stack.node(), node_on(stack, url));
    assert_eq!(a3.product(id).await.name, "ours 9");
    assert_eq!(b3.product(id).await.name, "theirs 9");
}

async fn copy(stack: Stack) {
    let id = stack.insert_unrelayed("same").await;
    let (url, sql) = copy_of(&stack, &stack.namespace).await;
    apart(&stack, &url, &sql, id).await;
}

/// By `pg_dump` and `pg_restore`, while the triggers record changes.
async fn restored(stack: Stack) {
    let ids = [stack.insert_unrelayed("same").await, stack.insert_unrelayed("deleted").await];
    let delete = "DELETE FROM products WHERE id = $1";
    sqlx::query(delete).bind(ids[1]).execute(&stack.sql).await.unwrap();
    let version = stack.version(ids[0]).await;
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    // PostgreSQL's programs run as another user where the tests run as root.
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let file = dir.path().join("dump").display().to_string();
    let dump = ["--format=custom", "--file", &file, &stack.database_url];
    stack.run_postgres_client("pg_dump", &dump).await;
    let (url, sql) = copy_of(&stack, "template0").await;
    let restore = ["--exit-on-error", "--dbname", &url, &file];
    stack.run_postgres_client("pg_restore", &restore).await;
    let restored = node_on(&stack, &url).await;
    assert_eq!(restored.product(ids[0]).await.version, version);
    assert_eq!(restored.get(ids[1]).await.unwrap_err().code(), Code::NotFound);
    drop(restored);
    apart(&stack, &url, &sql, ids[0]).await;
}

async fn different(stack: Stack) {
    let id = stack.insert_unrelayed("ours").await;
    // From the same template, and so with the same random id.
    let (url, sql) = copy_of(&stack, "template_hotshelf").await;
    sqlx::query("UPDATE hotshelf.catalogue SET id = gen_random_uuid()")
        .execute(&sql)
        .await
        .unwrap();
    let insert = "INSERT INTO products (id, name, price) VALUES ($1, 'theirs', 1)";
    sqlx::query(insert).bind(id).execute(&sql).await.unwrap();
    apart(&stack, &url, &sql, id).await;
}

async fn reported(stack: Stack) {
    let (url, _sql) = copy_of(&stack, &stack.namespace).await;
    let first = Program::serve(&stack, &[]).await;
    let words = "instances on another database use the same Redis and namespace";
    let reports = |program: &Program| {
        program.log().lines().filter(|line| line.contains(words) && line.contains("ERROR")).count()
    };
    let gauge = async |program: &Program| {
        let (_, text) = program.admin("/metrics").await;
        text.lines().any(|line| line == "hotshelf_redis_other_catalogues 1")
    };
    assert_eq!(reports(&first), 0);
    assert!(!gauge(&first).await);
    let second = Program::serve(&stack, &["--database-url", &url]).await;
    for (program, other) in [(&second, &*stack.namespace), (&first, "_other")] {
        eventually("it is reported", || async { reports(program) > 0 && gauge(program).await })
            .await;
        let (status, text) = program.admin("/readyz").await;
        assert_eq!(status, 200, "it serves: {text}");
        assert!(text.contains("is also used by") && text.contains(other), "{text}");
    }
    assert_eq!((reports(&first), reports(&second)), (1, 1), "{}", first.log());
}

/// A dump restores the outbox into a cluster whose transaction ids are lower.
async fn foreign_rows(stack: Stack) {
    let id = stack.insert_unrelayed("old").await;
    let foreign = "INSERT INTO hotshelf.outbox (catalogue, xid, product_ids, versions, deleted) \
        SELECT 1, (pg_current_xact_id()::text::bigint + 1000000)::text::xid8, ARRAY[$1::bigint], ARRAY[1::bigint], false";
    sqlx::query(foreign).bind(id).execute(&stack.sql).await.unwrap();
    let (a, b) = tokio::join!(stack.node(), stack.node());
    for round in 0..5 {
        let name = round.to_string();
        let update = "UPDATE products SET name = $1";
        sqlx::query(update).bind(&name).execute(&stack.sql).await.unwrap();
        for node in [&a, &b] {
            eventually("it is updated", || async { node.product(id).await.name == name }).await;
        }
    }
    for node in [&a, &b] {
        assert_eq!(node.metric("hotshelf_epochs_raised_total").await, 0.0);
    }
    eventually("the relay removes them", || async {
        let left = "SELECT count(*) FROM hotshelf.outbox \
            WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())";
        let left: i64 = sqlx::query_scalar(left).fetch_one(&stack.sql).await.unwrap();
        left == 0
    })
    .await;
}
