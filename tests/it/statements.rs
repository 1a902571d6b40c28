//! Failures of the service's statements, and the responses to their callers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use hotshelf::proto::{CreateProductRequest, Money, Product, UpdateProductRequest};
use prost_types::FieldMask;
use sqlx::{AssertSqlSafe, Executor};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::harness::{Node, Private, Stack, Suite, eventually, too_busy};
use crate::schema::run;

pub fn register(suite: &mut Suite<'_>) {
    suite
        .single("statements::a_column_that_gets_another_type_while_serving_fails_no_call", retyped);
    suite.single("statements::settings_of_the_role_do_not_matter", role_settings);
    suite.single("statements::deadlocks_and_discarded_statements_are_repeated", repeated);
    suite.single("statements::a_new_product_gets_the_next_free_id", free_ids);
    suite.alone(|suite| {
        suite.single("statements::a_row_that_is_held_is_waited_for_until_the_deadline", held_row);
    });
    suite.single("statements::a_held_row_costs_others_nothing", others_of_a_held_row);
    suite.single("statements::constraints_of_others_are_named", constraints);
    suite.private("statements::what_needs_a_postgres_that_is_down_is_refused_at_once", down);
    suite.private("statements::a_connection_that_broke_while_idle_fails_no_call", broke_while_idle);
}

pub fn new_product(name: &str) -> CreateProductRequest {
    let price = Some(Money { currency_code: "USD".to_owned(), units: 1, nanos: 0 });
    CreateProductRequest {
        product: Some(Product { name: name.to_owned(), price, ..Product::default() }),
    }
}

pub fn renamed(id: i64, name: &str) -> UpdateProductRequest {
    UpdateProductRequest {
        product: Some(Product { id, name: name.to_owned(), ..Product::default() }),
        update_mask: Some(FieldMask { paths: vec!["name".to_owned()] }),
        expected_version: None,
    }
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

pub async fn rename(node: &Node, id: i64, name: &str) -> Result<Product, Status> {
    node.client.clone().update_product(renamed(id, name)).await.map(tonic::Response::into_inner)
}

/// A read with `latest`, which always loads from Postgres.
pub async fn read_through(node: &Node, id: i64) -> Result<Product, Status> {
    use hotshelf::proto::get_product_request::Freshness;
    let freshness = Some(Freshness::Latest(true));
    let request = hotshelf::proto::GetProductRequest { id, freshness };
    node.client.clone().get_product(request).await.map(tonic::Response::into_inner)
}

/// An instance with the program's own timeouts, not the long ones of the harness.
async fn node(stack: &Stack) -> Node {
    let mut args = stack.args();
    args.postgres.database_statement_timeout = Duration::from_secs(2);
    args.postgres.database_acquire_timeout = Duration::from_millis(500);
    Node::start(&args).await
}

async fn retyped(stack: Stack) {
    let id = stack.insert_unrelayed("lamp").await;
    let node = node(&stack).await;
    for alter in [
        "ALTER COLUMN name TYPE varchar(400)",
        "ALTER COLUMN name TYPE text",
        "ALTER COLUMN price TYPE numeric(20,4)",
        "ALTER COLUMN currency TYPE text",
        "ADD COLUMN color text NOT NULL DEFAULT 'red'",
    ] {
        for round in 0..2 {
            // No more concurrent calls than the bound on waiters for one product.
            let calls = (0..30).map(|n| {
                let node = &node;
                async move {
                    read_through(node, id).await?;
                    rename(node, id, &format!("{alter} {n}")).await
                }
            });
            let outcomes: Vec<_> = stream::iter(calls).buffer_unordered(5).collect().await;
            for outcome in outcomes {
                outcome.unwrap_or_else(|status| panic!("{alter}, {round}: {status:?}"));
            }
            if round == 0 {
                run(&stack.sql, &format!("ALTER TABLE products {alter}")).await;
            }
        }
    }
    node.client.clone().create_product(new_product("new")).await.unwrap();
}

async fn role_settings(stack: Stack) {
    for setting in [
        "default_transaction_isolation = 'repeatable read'",
        "lock_timeout = '1ms'",
        "search_path = 'nowhere'",
        "statement_timeout = '1ms'",
    ] {
        run(&stack.sql, &format!("ALTER DATABASE {} SET {setting}", stack.namespace)).await;
    }
    let id = stack.insert_unrelayed("lamp").await;
    let (a, b) = (node(&stack).await, node(&stack).await);
    let calls = (0..300).map(|n| {
        let node = if n % 2 == 0 { &a } else { &b };
        async move { rename(node, id, &format!("name {n}")).await }
    });
    // No more concurrent calls than the bound on waiters for one product in one instance.
    let outcomes: Vec<_> = stream::iter(calls).buffer_unordered(5).collect().await;
    let failed: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} of 300, such as {:?}", failed.len(), failed[0]);
    let names = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'hotshelf' \
                 AND datname = current_database()";
    let named: i64 = sqlx::query_scalar(names).fetch_one(&stack.sql).await.unwrap();
    assert!(named >= 20, "connections are opened ahead, and named: {named}");
}

async fn repeated(stack: Stack) {
    let id = stack.insert_unrelayed("lamp").await;
    let node = node(&stack).await;
    // The trigger raises each state `times` times. It counts with a sequence, which no rollback resets.
    run(
        &stack.sql,
        "CREATE SEQUENCE public.tries; CREATE TABLE public.raised (state text, times bigint)",
    )
    .await;
    run(&stack.sql, "CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$DECLARE r record; BEGIN \
        SELECT * INTO r FROM public.raised; \
        IF nextval('public.tries') <= r.times THEN RAISE 'on purpose' USING ERRCODE = r.state; END IF; \
        RETURN NEW; END$$").await;
    run(
        &stack.sql,
        "CREATE TRIGGER fails BEFORE UPDATE ON products FOR EACH ROW EXECUTE FUNCTION public.fail()",
    )
    .await;
    for (state, times) in [("40001", 3), ("40P01", 3), ("0A000", 1), ("26000", 1)] {
        run(
            &stack.sql,
            &format!(
                "TRUNCATE public.raised; INSERT INTO public.raised VALUES ('{state}', {times})"
            ),
        )
        .await;
        run(&stack.sql, "ALTER SEQUENCE public.tries RESTART").await;
        let name = format!("after {state}");
        assert_eq!(rename(&node, id, &name).await.expect(&name).name, name);
    }
    // A pooler deallocates prepared statements between two clients.
    run(&stack.sql, "DROP TRIGGER fails ON products").await;
    run(&stack.sql, "CREATE FUNCTION discard() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN DEALLOCATE ALL; RETURN NULL; END$$").await;
    run(&stack.sql, "CREATE TRIGGER discards AFTER UPDATE ON products FOR EACH STATEMENT EXECUTE FUNCTION discard()").await;
    for n in 0..30 {
        let name = format!("{n}");
        assert_eq!(rename(&node, id, &name).await.unwrap().name, name);
        assert_eq!(read_through(&node, id).await.unwrap().name, name);
    }
}

async fn free_ids(stack: Stack) {
    let sql = &stack.sql;
    run(sql, "INSERT INTO products (id, name, price) SELECT n, 'taken', 1 FROM generate_series(1, 30000) n").await;
    run(sql, "INSERT INTO products (id, name, price) VALUES (9223372036854775807, 'last', 1), (30002, 'taken', 1)").await;
    let node = node(&stack).await;
    let create = async || {
        let created = node.client.clone().create_product(new_product("new")).await;
        created.map(|created| created.into_inner().id)
    };
    assert_eq!(create().await.unwrap(), 30_001);
    assert_eq!(create().await.unwrap(), 30_003, "the next one that is free");
    let many = join_all((0..50).map(|_| create())).await;
    let mut ids: Vec<i64> = many.into_iter().map(Result::unwrap).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 50);
    // An open transaction holds the next id.
    let next = ids.last().unwrap() + 1;
    let mut held = sql.begin().await.unwrap();
    let insert = format!("INSERT INTO products (id, name, price) VALUES ({next}, 'held', 1)");
    held.execute(AssertSqlSafe(insert)).await.unwrap();
    assert_eq!(create().await.unwrap(), next + 1);
    held.rollback().await.unwrap();
    run(sql, "SELECT setval('products_id_seq', 9223372036854775807)").await;
    run(sql, "DELETE FROM products WHERE id = 17").await;
    assert_eq!(create().await.unwrap(), 17, "what is free below the end");
}

/// An update with a deadline, and its duration.
async fn rename_within(
    node: &Node,
    id: i64,
    deadline: Duration,
) -> (Result<Product, Status>, Duration) {
    let mut request = Request::new(renamed(id, "renamed"));
    request.set_timeout(deadline);
    let began = Instant::now();
    let answer = node.client.clone().update_product(request).await;
    (answer.map(tonic::Response::into_inner), began.elapsed())
}

async fn hold(stack: &Stack, id: i64) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut held = stack.sql.begin().await.unwrap();
    let update = format!("UPDATE products SET name = 'held' WHERE id = {id}");
    held.execute(AssertSqlSafe(update)).await.unwrap();
    held
}

async fn held_row(stack: Stack) {
    let id = stack.insert_unrelayed("lamp").await;
    let node = node(&stack).await;
    let version = stack.version(id).await;
    let held = hold(&stack, id).await;
    let short = Duration::from_millis(500);
    for (deadline, least) in [(short, 300), (Duration::from_secs(4), 3_500)] {
        let (answer, took) = rename_within(&node, id, deadline).await;
        let refused = answer.unwrap_err();
        assert_eq!(
            (refused.code(), &*reason(&refused)),
            (Code::Aborted, "PRODUCT_LOCKED"),
            "{refused:?}"
        );
        assert!(took > Duration::from_millis(least) && took < deadline, "{took:?} of {deadline:?}");
    }
    let release = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        held.rollback().await.unwrap();
    };
    let (waited, ()) = tokio::join!(rename_within(&node, id, Duration::from_secs(9)), release);
    let (answer, took) = waited;
    assert_eq!(answer.unwrap().version, stack.version(id).await);
    assert!(took > Duration::from_secs(2), "{took:?}");
    assert!(stack.version(id).await > version);
}

async fn others_of_a_held_row(stack: Stack) {
    let (id, other) = (stack.insert_unrelayed("lamp").await, stack.insert_unrelayed("chair").await);
    let node = node(&stack).await;
    let held = hold(&stack, id).await;
    let wait = || async { rename_within(&node, id, Duration::from_secs(5)).await };
    let timed_out = AtomicBool::new(false);
    let waiting = async {
        let answers = join_all((0..200).map(|_| wait())).await;
        timed_out.store(true, Ordering::Relaxed);
        answers
    };
    let others = async {
        eventually("they wait", || async { !stack.waiting_statements().await.is_empty() }).await;
        assert!(stack.waiting_statements().await.len() <= 1, "one connection for one row");
        for _ in 0..20 {
            rename(&node, other, "other").await.unwrap();
            read_through(&node, other).await.unwrap();
        }
        if timed_out.load(Ordering::Relaxed) {
            too_busy("20 writes and reads of another product took longer than 5 s");
        }
    };
    let (waited, ()) = tokio::join!(waiting, others);
    for (answer, _) in waited {
        let refused = answer.unwrap_err();
        // The client's own deadline may expire before the response arrives.
        let codes = [Code::Aborted, Code::DeadlineExceeded, Code::Cancelled];
        assert!(codes.contains(&refused.code()), "{refused:?}");
    }
    held.rollback().await.unwrap();
}

async fn constraints(stack: Stack) {
    let id = stack.insert_unrelayed("lamp").await;
    stack.insert_unrelayed("chair").await;
    run(&stack.sql, "ALTER TABLE products ADD CONSTRAINT one_of_a_name UNIQUE (name), \
        ADD CONSTRAINT no_tables CHECK (name <> 'table'), ADD COLUMN shelf text NOT NULL DEFAULT 'a'").await;
    run(
        &stack.sql,
        "CREATE TABLE shelves (name text PRIMARY KEY); INSERT INTO shelves VALUES ('a')",
    )
    .await;
    run(
        &stack.sql,
        "CREATE FUNCTION shelve() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN \
        IF NEW.name = 'nowhere' THEN NEW.shelf := 'none'; END IF; \
        IF NEW.name = 'raised' THEN RAISE 'not this one'; END IF; RETURN NEW; END$$",
    )
    .await;
    run(&stack.sql, "CREATE TRIGGER shelve BEFORE INSERT OR UPDATE ON products FOR EACH ROW EXECUTE FUNCTION shelve()").await;
    run(
        &stack.sql,
        "ALTER TABLE products ADD CONSTRAINT on_a_shelf FOREIGN KEY (shelf) REFERENCES shelves",
    )
    .await;
    run(
        &stack.sql,
        "CREATE TABLE orders (product_id bigint CONSTRAINT ordered REFERENCES products)",
    )
    .await;
    run(&stack.sql, &format!("INSERT INTO orders VALUES ({id})")).await;
    let node = node(&stack).await;
    let mut client = node.client.clone();
    let cases = [
        ("chair", Code::AlreadyExists, Some("one_of_a_name")),
        ("table", Code::InvalidArgument, Some("no_tables")),
        ("nowhere", Code::FailedPrecondition, Some("on_a_shelf")),
        ("raised", Code::FailedPrecondition, None),
    ];
    let check = |refused: Status, code: Code, constraint: Option<&str>| {
        assert_eq!(
            (refused.code(), &*reason(&refused)),
            (code, "CONSTRAINT_VIOLATED"),
            "{refused:?}"
        );
        let info = refused.get_error_details().error_info().unwrap().clone();
        assert_eq!(info.metadata.get("constraint").map(|name| &**name), constraint);
        assert!(!refused.message().contains("at line"), "{refused:?}");
    };
    for (name, code, constraint) in cases {
        check(rename(&node, id, name).await.unwrap_err(), code, constraint);
        check(client.create_product(new_product(name)).await.unwrap_err(), code, constraint);
    }
    let delete = hotshelf::proto::DeleteProductRequest { id, expected_version: None };
    check(
        client.delete_product(delete).await.unwrap_err(),
        Code::FailedPrecondition,
        Some("ordered"),
    );
}

/// The duration of a call that is not refused at once.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

async fn down(world: Private) {
    let id = world.insert_unrelayed("lamp").await;
    let mut args = world.args();
    args.postgres.database_acquire_timeout = ACQUIRE_TIMEOUT;
    args.postgres.database_statement_timeout = Duration::from_secs(2);
    let node = Node::start(&args).await;
    for frozen in [false, true] {
        rename(&node, id, "first").await.unwrap();
        if frozen {
            world.postgres.pause()
        } else {
            world.postgres.kill()
        }
        // The first call after the fault may take longer.
        let _ = read_through(&node, id).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        refused_at_once(&node, id).await;
        let postgres = &world.postgres;
        match frozen {
            true => postgres.resume(),
            false => postgres.start_again().unwrap(),
        }
        eventually("writes succeed again", || async { rename(&node, id, "again").await.is_ok() })
            .await;
        assert_eq!(read_through(&node, id).await.unwrap().name, "again");
    }
}

async fn refused_at_once(node: &Node, id: i64) {
    let mut took = Vec::new();
    for n in 0..50 {
        let began = Instant::now();
        let read = read_through(node, 1_000 + n).await.unwrap_err();
        let update = rename(node, id, "not now").await.unwrap_err();
        took.push(began.elapsed());
        for refused in [read, update] {
            assert_eq!(reason(&refused), "DATABASE_UNAVAILABLE", "{refused:?}");
        }
    }
    // The median: a busy machine delays a few.
    took.sort_unstable();
    assert!(took[25] < ACQUIRE_TIMEOUT / 4, "a read and an update took {:?}", took[25]);
}

async fn broke_while_idle(world: Private) {
    let id = world.insert_unrelayed("lamp").await;
    let node = Node::start(&world.args()).await;
    for _ in 0..3 {
        rename(&node, id, "before").await.unwrap();
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        world.sql.execute(end).await.unwrap();
        for _ in 0..20 {
            read_through(&node, id).await.unwrap();
        }
        // By this time the pool has replaced every broken connection.
        tokio::time::sleep(Duration::from_millis(400)).await;
        for _ in 0..20 {
            rename(&node, id, "after").await.unwrap();
        }
    }
}
