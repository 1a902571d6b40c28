//! docs/sql.md: the SQL that is supported, the rights it needs, and that every change is recorded.

use std::time::Duration;

use hotshelf::config::DatabaseArgs;
use hotshelf::metrics::Metrics;
use hotshelf::postgres::{Migrate, Postgres};
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::harness::{Program, Stack, Suite, attach, connect, eventually};
use crate::schema::{changes, run};

const DOCS: &str = include_str!("../../docs/sql.md");

pub fn register(suite: &mut Suite<'_>) {
    suite.single(
        "sql::a_role_with_rights_on_products_alone_writes_at_every_isolation_level",
        writer,
    );
    suite.single("sql::a_session_in_the_replica_role_is_noticed", replica_role);
    suite.single("sql::a_truncation_is_one_row_and_what_follows_is_newer", truncation);
    suite.single("sql::a_product_that_gets_another_id_is_deleted_under_its_old_one", moved);
    suite.single("sql::copy_and_merge_are_noticed", copy_and_merge);
    suite.single("sql::writes_to_a_partitioned_table_and_to_a_partition_are_noticed", partitions);
    suite.own("sql::what_logical_replication_applies_is_noticed", None, replication);
    suite.single("sql::what_was_deleted_long_ago_is_forgotten", pruned);
    suite.single("sql::an_instance_serves_with_the_rights_that_the_page_grants", grants);
    suite
        .single("sql::a_trigger_that_does_not_fire_for_all_is_named_at_the_start", broken_triggers);
    suite
        .single("sql::only_a_missing_migration_is_applied_and_none_with_migrate_never", migrations);
    suite.single("sql::a_foreign_table_is_left_alone_until_it_is_attached", nothing_attached);
}

/// The SQL of a section of docs/sql.md.
fn page(section: &str) -> String {
    let (_, section) = DOCS.split_once(&format!("## {section}\n")).expect(section);
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```sql\n").skip(1).map(|block| block.split("```").next().unwrap());
    blocks.collect::<Vec<_>>().join("\n")
}

async fn role(stack: &Stack, name: &str) -> String {
    let role = format!("{}_{name}", stack.namespace);
    run(&stack.sql, &format!("CREATE ROLE {role} LOGIN")).await;
    role
}

fn url_of(stack: &Stack, role: &str) -> String {
    stack.database_url.replace("//hotshelf@", &format!("//{role}@"))
}

async fn versions(sql: &PgPool) -> Vec<(i64, i64)> {
    sqlx::query_as("SELECT id, hotshelf_version FROM products ORDER BY id")
        .fetch_all(sql)
        .await
        .unwrap()
}

/// The newest recorded change of each product has the version in the table.
async fn assert_recorded(sql: &PgPool) {
    let recorded = changes(sql).await;
    for (id, version) in versions(sql).await {
        let newest = recorded.iter().filter(|change| change.0 == id).max_by_key(|c| (c.1, c.2));
        assert_eq!(newest, Some(&(id, version, false)), "{recorded:?}");
    }
}

async fn writer(stack: Stack) {
    let role = role(&stack, "writer").await;
    run(&stack.sql, &page("Rights of a writer").replace("shop_writer", &role)).await;
    let mut session = PgConnection::connect(&url_of(&stack, &role)).await.unwrap();
    assert!(
        session.execute("SELECT FROM hotshelf.outbox").await.is_err(),
        "it has no access to hotshelf's tables"
    );
    for path in ["", "pg_catalog", "public, hotshelf"] {
        session.execute(AssertSqlSafe(format!("SET search_path = '{path}'"))).await.unwrap();
        for level in ["read uncommitted", "read committed", "repeatable read", "serializable"] {
            let before = changes(&stack.sql).await.len();
            for statement in [
                format!("BEGIN ISOLATION LEVEL {level}"),
                "INSERT INTO public.products (id, name, price) VALUES (1, 'a', 1), (2, 'b', 2)"
                    .into(),
                "UPDATE public.products SET price = 3 WHERE id = 1".into(),
                "DELETE FROM public.products WHERE id = 1".into(),
                "INSERT INTO public.products (id, name, price) VALUES (1, 'again', 1)".into(),
                "COMMIT".into(),
            ] {
                session.execute(AssertSqlSafe(statement.clone())).await.expect(&statement);
            }
            assert!(changes(&stack.sql).await.len() >= before + 5, "{path:?}, {level}");
            assert_recorded(&stack.sql).await;
            run(&stack.sql, "DELETE FROM products").await;
        }
    }
}

async fn replica_role(stack: Stack) {
    let sql = connect(&stack.database_url, 1);
    run(&sql, "SET session_replication_role = replica").await;
    run(
        &sql,
        "INSERT INTO products (id, name, price) VALUES (1, 'a', 1), (2, 'b', 1), (3, 'c', 1)",
    )
    .await;
    run(&sql, "UPDATE products SET price = 2 WHERE id = 1").await;
    run(&sql, "UPDATE products SET id = 4 WHERE id = 2").await;
    run(&sql, "DELETE FROM products WHERE id = 3").await;
    let [(1, first), (4, fourth)] = versions(&sql).await[..] else { panic!() };
    let expected = [
        (1, 2, false),
        (2, 3, false),
        (3, 4, false),
        (1, first, false),
        (2, 3, true),
        (4, fourth, false),
        (3, 4, true),
    ];
    assert_eq!(changes(&sql).await, expected);
    run(&sql, "TRUNCATE products").await;
    assert_eq!(changes(&sql).await.last().unwrap().0, 0);
}

async fn truncation(stack: Stack) {
    let sql = &stack.sql;
    run(sql, "INSERT INTO products (name, price) SELECT 'p', n FROM generate_series(1, 3000) n")
        .await;
    let mut transaction = sql.begin().await.unwrap();
    transaction.execute("TRUNCATE products RESTART IDENTITY").await.unwrap();
    transaction.execute("INSERT INTO products (name, price) VALUES ('next', 1)").await.unwrap();
    transaction.commit().await.unwrap();
    let rows = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM hotshelf.outbox WHERE deleted");
    assert_eq!(rows.fetch_one(sql).await.unwrap(), 1);
    let truncated = sqlx::query_scalar::<_, i64>("SELECT version FROM hotshelf.truncations");
    let [(1, next)] = versions(sql).await[..] else { panic!("the id is used again") };
    let truncated = truncated.fetch_one(sql).await.unwrap();
    assert!(3000 < truncated && truncated < next, "{truncated}, {next}");
}

async fn moved(stack: Stack) {
    let sql = &stack.sql;
    run(sql, "INSERT INTO products (id, name, price) VALUES (1, 'a', 1), (2, 'b', 1)").await;
    run(sql, "DELETE FROM products WHERE id = 2").await;
    run(sql, "UPDATE products SET id = 2 WHERE id = 1").await;
    let [(2, version)] = versions(sql).await[..] else { panic!() };
    let recorded = changes(sql).await;
    assert!(recorded.contains(&(1, 2, true)), "{recorded:?}");
    assert!(recorded.contains(&(2, version, false)) && version > 3, "{recorded:?}");
    let gone: Vec<(i64, i64)> =
        sqlx::query_as("SELECT product_id, version FROM hotshelf.deleted ORDER BY 1")
            .fetch_all(sql)
            .await
            .unwrap();
    assert_eq!(gone, [(1, 2), (2, 3)]);
}

async fn copy_and_merge(stack: Stack) {
    let sql = &stack.sql;
    let mut connection = sql.acquire().await.unwrap();
    let copy = "COPY products (id, name, price) FROM STDIN";
    let mut copy = connection.copy_in_raw(copy).await.unwrap();
    copy.send("1\ta\t1\n2\tb\t2\n3\tc\t3\n".as_bytes()).await.unwrap();
    copy.finish().await.unwrap();
    assert_recorded(sql).await;
    let merge = "MERGE INTO products USING (VALUES (1, 10), (2, 0), (4, 40)) AS new (id, price) \
                 ON products.id = new.id \
                 WHEN MATCHED AND new.price = 0 THEN DELETE \
                 WHEN MATCHED THEN UPDATE SET price = new.price \
                 WHEN NOT MATCHED THEN INSERT (id, name, price) VALUES (new.id, 'd', new.price)";
    run(sql, merge).await;
    assert_recorded(sql).await;
    assert!(changes(sql).await.contains(&(2, 3, true)));
    assert_eq!(versions(sql).await.len(), 3);
}

async fn partitions(stack: Stack) {
    let sql = connect(&stack.database_url, 1);
    run(&sql, "INSERT INTO products (id, name, price) VALUES (7, 'before', 1)").await;
    run(&sql, &page("Partitions")).await;
    run(
        &sql,
        "CREATE TABLE products_c PARTITION OF products FOR VALUES FROM (2000000) TO (3000000)",
    )
    .await;
    let broken: Option<String> =
        sqlx::query_scalar("SELECT hotshelf.broken_triggers()").fetch_optional(&sql).await.unwrap();
    assert_eq!(broken, None, "a new partition has them too");
    assert_recorded(&sql).await;
    for level in ["read committed", "serializable"] {
        run(&sql, &format!("SET default_transaction_isolation = '{level}'")).await;
        run(&sql, "INSERT INTO products (id, name, price) VALUES (1, 'a', 1), (1000001, 'b', 1)")
            .await;
        run(&sql, "INSERT INTO products_a (id, name, price) VALUES (2, 'direct', 1)").await;
        run(&sql, "INSERT INTO products_c (id, name, price) VALUES (2000001, 'direct', 1)").await;
        assert_recorded(&sql).await;
        run(&sql, "UPDATE products_a SET price = 5").await;
        assert_recorded(&sql).await;
        run(&sql, "UPDATE products SET price = 6").await;
        assert_recorded(&sql).await;
        let [(1, first), ..] = versions(&sql).await[..] else { panic!() };
        run(&sql, "UPDATE products SET id = 1000002 WHERE id = 1").await;
        assert!(changes(&sql).await.contains(&(1, first, true)), "to another partition");
        run(&sql, "DELETE FROM products_c").await;
        assert!(changes(&sql).await.iter().any(|change| change.0 == 2_000_001 && change.2));
        assert_recorded(&sql).await;
        run(&sql, "DELETE FROM products").await;
    }
    run(&sql, "TRUNCATE products").await;
    assert_eq!(changes(&sql).await.last().unwrap().0, 0);
}

/// One database publishes its products, another one on the same server subscribes.
async fn replication() {
    let options = devstack::PostgresOptions { logical: true, ..Default::default() };
    let server = tokio::task::spawn_blocking(|| devstack::Postgres::start(options)).await;
    let server = server.unwrap().unwrap();
    let admin = connect(&server.url(), 1);
    let mut pools = Vec::new();
    for name in ["source", "target"] {
        run(&admin, &format!("CREATE DATABASE {name}")).await;
        let sql = connect(&server.url_of(name), 1);
        run(&sql, devstack::sample::TABLE).await;
        attach(&server.url_of(name), "products").await.unwrap();
        pools.push(sql);
    }
    let [source, target] = [&pools[0], &pools[1]];
    run(source, "INSERT INTO products (id, name, price) VALUES (1, 'copied', 1), (2, 'copied', 1)")
        .await;
    run(source, "CREATE PUBLICATION shop FOR TABLE products").await;
    run(source, "SELECT pg_create_logical_replication_slot('shop', 'pgoutput')").await;
    let subscribe = format!(
        "CREATE SUBSCRIPTION shop CONNECTION 'host=127.0.0.1 port={} user=hotshelf dbname=source' \
         PUBLICATION shop WITH (create_slot = false, slot_name = 'shop')",
        server.port()
    );
    run(target, &subscribe).await;
    let holds = |name: &'static str, count: i64| async move {
        let found = sqlx::query_scalar("SELECT count(*) FROM products WHERE name = $1");
        found.bind(name).fetch_one(target).await.is_ok_and(|found: i64| found == count)
    };
    eventually("the table is copied", || holds("copied", 2)).await;
    assert_recorded(target).await;
    run(source, "UPDATE products SET name = 'changed'").await;
    eventually("updates are applied", || holds("changed", 2)).await;
    run(source, "INSERT INTO products (id, name, price) VALUES (3, 'new', 1)").await;
    run(source, "DELETE FROM products WHERE id = 1").await;
    run(source, "UPDATE products SET id = 4 WHERE id = 2").await;
    run(source, "INSERT INTO products (id, name, price) VALUES (5, 'last', 1)").await;
    eventually("the rest is applied", || holds("last", 1)).await;
    assert_recorded(target).await;
    let recorded = changes(target).await;
    assert!(recorded.iter().any(|change| change.0 == 1 && change.2), "{recorded:?}");
    assert!(recorded.iter().any(|change| change.0 == 2 && change.2), "{recorded:?}");
    run(source, "TRUNCATE products").await;
    eventually("the truncation is applied", || holds("last", 0)).await;
    assert_eq!(changes(target).await.last().unwrap().0, 0);
    run(target, "ALTER SUBSCRIPTION shop DISABLE").await;
}

fn postgres(url: &str) -> Postgres {
    let options = DatabaseArgs::of(url.to_owned()).one_connection();
    Postgres::new(&options, Metrics::new()).unwrap()
}

async fn migrate(url: &str, how: Migrate) -> Result<(), String> {
    let postgres = postgres(url);
    let migrated = postgres.migrate(how).await.map_err(|error| error.to_string());
    postgres.close().await;
    migrated
}

async fn pruned(stack: Stack) {
    let sql = &stack.sql;
    run(sql, "INSERT INTO products (name, price) SELECT 'p', n FROM generate_series(1, 30) n")
        .await;
    run(sql, "DELETE FROM products WHERE id <= 20").await;
    run(sql, "UPDATE hotshelf.deleted SET delete_time = now() - interval '2 hours' WHERE product_id <= 15").await;
    let postgres = postgres(&stack.database_url);
    postgres.open_catalogue().await.unwrap();
    let hour = Duration::from_secs(3600);
    assert_eq!(postgres.prune_deleted(hour, 10).await.unwrap(), 10, "at most the limit");
    // A row that another transaction has locked is skipped.
    let mut held = sql.begin().await.unwrap();
    held.execute("SELECT FROM hotshelf.deleted WHERE product_id = 15 FOR UPDATE").await.unwrap();
    assert_eq!(postgres.prune_deleted(hour, 10).await.unwrap(), 4);
    held.rollback().await.unwrap();
    assert_eq!(postgres.prune_deleted(hour, 10).await.unwrap(), 1);
    run(sql, "TRUNCATE products").await;
    assert_eq!(postgres.prune_deleted(hour, 10).await.unwrap(), 0);
    run(sql, "UPDATE hotshelf.truncations SET delete_time = now() - interval '2 hours'").await;
    assert_eq!(postgres.prune_deleted(hour, 10).await.unwrap(), 1);
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM hotshelf.deleted").fetch_one(sql).await.unwrap();
    assert_eq!(left, 5);
}

/// One role migrates the database, another one serves, and a third one imports.
async fn grants(stack: Stack) {
    let (owner, server, importer) =
        (role(&stack, "owner").await, role(&stack, "server").await, role(&stack, "importer").await);
    let fresh = format!("{}_rights", stack.namespace);
    run(&stack.sql, &format!("CREATE DATABASE {fresh}")).await;
    let url = |role: &str| {
        url_of(&stack, role)
            .replace(&stack.namespace, &fresh)
            .replace(&format!("//{fresh}_"), &format!("//{}_", stack.namespace))
    };
    let admin = connect(&url("hotshelf"), 1);
    let granted = |section: &str| {
        let sql = page(section).replace("shop_db", &fresh).replace("shop_owner", &owner);
        sql.replace("shop_server", &server).replace("shop_import", &importer)
    };
    run(&admin, "REVOKE ALL ON SCHEMA public FROM PUBLIC; GRANT USAGE ON SCHEMA public TO PUBLIC")
        .await;
    run(&admin, devstack::sample::TABLE).await;
    let lacking = attach(&url(&owner), "products").await.unwrap_err();
    assert!(lacking.contains("docs/sql.md"), "{lacking}");
    run(&admin, &granted("Rights of attach")).await;
    run(&admin, &format!("ALTER TABLE products OWNER TO {owner}")).await;
    attach(&url(&owner), "products").await.unwrap();
    let lacking = migrate(&url(&server), Migrate::Auto).await.unwrap_err();
    assert!(lacking.contains("permission denied") && lacking.contains("docs/sql.md"), "{lacking}");
    run(&admin, &granted("Rights of serve")).await;
    run(&admin, &granted("Rights of import")).await;
    let csv = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&csv, "id,name,price\n1,Lamp,1\n20000,Lamp,1\n").unwrap();
    let file = csv.path().to_str().unwrap();
    let ended = Program::run(&["import", "--database-url", &url(&importer), file]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let database = url(&server);
    let program = Program::serve(&stack, &["--database-url", &database]).await;
    let mut client = program.client().await;
    let created = client.create_product(crate::statements::new_product("chair")).await.unwrap();
    assert_eq!(created.into_inner().id, 20_001);
    let renamed = client.update_product(crate::statements::renamed(1, "shelf")).await.unwrap();
    assert_eq!(renamed.into_inner().name, "shelf");
    assert!(!program.log().contains("permission denied"), "{}", program.log());
}

async fn broken_triggers(stack: Stack) {
    let sql = &stack.sql;
    for breaks in [
        "ALTER TABLE products DISABLE TRIGGER hotshelf_updated",
        "ALTER TABLE products ENABLE TRIGGER hotshelf_updated",
        "DROP TRIGGER hotshelf_updated ON products",
    ] {
        run(sql, breaks).await;
        let ended = Program::finish(Program::serving(&stack, &[])).await;
        assert_eq!(ended.code, Some(1), "{breaks}");
        let words = ["products: hotshelf_updated)", "SELECT hotshelf.install_triggers()"];
        assert!(words.iter().all(|word| ended.stderr.contains(word)), "{}", ended.stderr);
        run(sql, "SELECT hotshelf.install_triggers()").await;
    }
    drop(Program::serve(&stack, &[]).await);
}

async fn fresh_database(stack: &Stack, name: &str) -> String {
    let fresh = format!("{}_{name}", stack.namespace);
    run(&stack.sql, &format!("CREATE DATABASE {fresh}")).await;
    stack.database_url.replace(&stack.namespace, &fresh)
}

async fn migrations(stack: Stack) {
    let url = fresh_database(&stack, "fresh").await;
    let refused = migrate(&url, Migrate::Never).await.unwrap_err();
    assert!(refused.contains("migration 1") && refused.contains("hotshelf migrate"), "{refused}");
    let sql = connect(&url, 1);
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'hotshelf'";
    let schemas: i64 = sqlx::query_scalar(schemas).fetch_one(&sql).await.unwrap();
    assert_eq!(schemas, 0, "nothing was made");
    // Two concurrent migrations, as when a fleet starts.
    let (first, second) = tokio::join!(migrate(&url, Migrate::Auto), migrate(&url, Migrate::Auto));
    first.and(second).unwrap();
    migrate(&url, Migrate::Never).await.unwrap();
    run(&sql, devstack::sample::TABLE).await;
    attach(&url, "products").await.unwrap();
    let arguments = ["--database-url", &url, "--migrate", "never"];
    let program = Program::serve(&stack, &arguments).await;
    assert!(!program.log().contains("already exists"), "{}", program.log());
}

async fn nothing_attached(stack: Stack) {
    let url = fresh_database(&stack, "foreign").await;
    run(&connect(&url, 1), "CREATE TABLE products (id int); CREATE TABLE product_changes (id int)")
        .await;
    migrate(&url, Migrate::Auto).await.unwrap();
    let arguments = ["--database-url", &url];
    let ended = Program::finish(Program::serving(&stack, &arguments)).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("hotshelf attach TABLE"), "{}", ended.stderr);
}
