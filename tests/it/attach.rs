//! A table that exists is attached, served with all its columns, and detached again.

mod attributes;
mod changed;
mod refused;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hotshelf::postgres::AttachOptions;
use hotshelf::proto::{Product, UpdateProductRequest};
use prost_types::FieldMask;
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::harness::{
    Node, Program, Stack, Suite, attach, attach_with, connect, eventually, finish,
};
use crate::schema::run;

/// The table that people come with.
const SEED: &str = "CREATE TABLE products (id SERIAL PRIMARY KEY, name VARCHAR(255) NOT NULL, \
    price NUMERIC(10,2) NOT NULL, description TEXT)";
const HOUR: Duration = Duration::from_secs(3_600);

pub fn register(suite: &mut Suite<'_>) {
    suite.alone(|suite| {
        suite.single("attach::a_table_is_attached_while_it_is_written_to", under_load);
    });
    suite.single("attach::a_table_that_is_held_is_named_and_blocks_no_writer", held);
    suite.single("attach::detached_again_the_database_is_dumped_as_before", dumped);
    suite.single("attach::the_printed_sql_does_the_same", printed);
    suite.single("attach::the_program_asks_on_a_terminal_only", asks);
    suite.single("attach::values_that_the_message_cannot_say_are_unset", unset);
    suite.single("attach::an_integer_price_counts_what_was_chosen", cents);
    suite.single("attach::a_partitioned_table_is_served", partitioned);
    suite.single("attach::names_may_be_hostile", hostile);
    suite.both("attach::two_tables_of_one_database_are_two_catalogues", two);
    attributes::register(suite);
    changed::register(suite);
    refused::register(suite);
}

/// A database of its own with these tables, and not attached.
pub async fn database(stack: &Stack, name: &str, sql: &str) -> (String, PgPool) {
    let database = format!("{}_{name}", stack.namespace);
    run(&stack.sql, &format!("CREATE DATABASE {database}")).await;
    let url = stack.database_url.replace(&stack.namespace, &database);
    let pool = connect(&url, 5);
    run(&pool, sql).await;
    (url, pool)
}

pub async fn node_on(stack: &Stack, url: &str, catalogue: &str) -> Node {
    let mut args = stack.args();
    args.database.database_url = url.to_owned();
    args.postgres.catalog = catalogue.to_owned();
    Node::start(&args).await
}

async fn number(sql: &PgPool, query: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(sql).await.unwrap()
}

fn update(product: Product, paths: &[&str]) -> UpdateProductRequest {
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    let update_mask = Some(FieldMask { paths });
    UpdateProductRequest { product: Some(product), update_mask, expected_version: None }
}

/// Units and nanos.
fn price(product: &Product) -> Option<(i64, i32)> {
    product.price.as_ref().map(|price| (price.units, price.nanos))
}

async fn under_load(stack: Stack) {
    let (url, sql) = database(&stack, "seed", SEED).await;
    let fill = "INSERT INTO products (name, price, description) \
                SELECT 'product ' || n, n, 'd' FROM generate_series(1, 10000) AS n";
    run(&sql, fill).await;
    let filenode = "SELECT pg_relation_filenode('products')::bigint";
    let before = number(&sql, filenode).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers = (0..3).map(|writer: i64| {
        let (sql, stop) = (sql.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            let (mut longest, mut id) = (Duration::ZERO, writer);
            while !stop.load(Ordering::Relaxed) {
                id = id % 5_000 + 3;
                let began = Instant::now();
                let update = "UPDATE products SET price = price + 1 WHERE id = $1";
                sqlx::query(update).bind(id).execute(&sql).await.unwrap();
                longest = longest.max(began.elapsed());
            }
            longest
        })
    });
    let writers: Vec<_> = writers.collect();
    attach(&url, "products").await.unwrap();
    let node = node_on(&stack, &url, "").await;
    // Right from the first moment, rows that were not written and rows that are.
    let product = node.product(9_999).await;
    assert_eq!((product.version, &*product.name), (1, "product 9999"));
    assert_eq!(price(&product), Some((9_999, 0)));
    let read = node.product(4_711).await;
    eventually("writes are served", async || {
        price(&node.product(4_711).await) > price(&read) && node.product(4_711).await.version > 1
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        let longest = writer.await.unwrap();
        assert!(longest < Duration::from_secs(1), "a writer waited for {longest:?}");
    }
    assert_eq!(number(&sql, filenode).await, before, "the table was not rewritten");
    let rows = "SELECT count(*) FROM products WHERE hotshelf_version IS NULL AND id > 5003";
    assert_eq!(number(&sql, rows).await, 4_997);
}

async fn held(stack: Stack) {
    let (url, sql) = database(&stack, "held", SEED).await;
    run(&sql, "INSERT INTO products (name, price) VALUES ('a', 1)").await;
    let mut reader = sql.begin().await.unwrap();
    reader.execute("SELECT FROM products").await.unwrap();
    let program =
        Program::command(&["attach", "products", "--yes", "--wait", "2s", "--database-url", &url]);
    let attaching = tokio::spawn(Program::finish(program));
    let mut longest = Duration::ZERO;
    while !attaching.is_finished() {
        let began = Instant::now();
        run(&sql, "UPDATE products SET price = price + 1").await;
        longest = longest.max(began.elapsed());
    }
    let ended = attaching.await.unwrap();
    assert_eq!(ended.code, Some(1));
    let words = ["could not be locked within 2s", "idle in transaction", "SELECT FROM products"];
    assert!(words.iter().all(|word| ended.stderr.contains(word)), "{}", ended.stderr);
    assert!(longest < Duration::from_secs(1), "a writer waited for {longest:?}");
    reader.rollback().await.unwrap();
    attach(&url, "products").await.unwrap();
}

/// A directory for the clients of PostgreSQL, which may run as another user.
fn shared_directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).unwrap();
    directory
}

async fn dump(stack: &Stack, url: &str) -> String {
    let directory = shared_directory();
    let path = directory.path().join("dump.sql");
    let file = path.to_str().unwrap();
    stack.run_postgres_client("pg_dump", &["--file", file, url]).await;
    let dump = std::fs::read_to_string(&path).unwrap();
    // Newer versions of pg_dump write a random word.
    let lines = dump.lines().filter(|line| !line.contains("restrict "));
    lines.collect::<Vec<_>>().join("\n")
}

async fn dumped(stack: Stack) {
    let wide = "CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text, \
        price numeric CHECK (price > 0)) PARTITION BY RANGE (id); \
        CREATE TABLE orders_a PARTITION OF orders FOR VALUES FROM (1) TO (1000)";
    let (url, sql) = database(&stack, "dumped", &format!("{SEED}; {wide}")).await;
    run(&sql, "INSERT INTO products (name, price) VALUES ('a', 1), ('b', 2)").await;
    let before = dump(&stack, &url).await;
    for table in ["products", "orders"] {
        attach(&url, table).await.unwrap();
    }
    assert_ne!(dump(&stack, &url).await, before);
    for table in ["public.orders", "products"] {
        let detach = ["detach", table, "--yes", "--database-url", &url];
        let ended = Program::run(&detach).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stderr.contains("hotshelf_version"), "it says what it drops");
    }
    assert_eq!(dump(&stack, &url).await, before);
    run(&sql, "UPDATE products SET price = 3; DELETE FROM orders").await;
    let ended = Program::run(&["detach", "products", "--yes", "--database-url", &url]).await;
    assert!(ended.stderr.contains("is not attached"), "{}", ended.stderr);
}

async fn printed(stack: Stack) {
    let (url, sql) = database(&stack, "printed", SEED).await;
    run(&sql, "INSERT INTO products (name, price) VALUES ('it''s', 1)").await;
    let attach = ["attach", "products", "--print-sql", "--database-url", &url];
    let ended = Program::run(&attach).await;
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""));
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'hotshelf'";
    assert_eq!(number(&sql, schemas).await, 0, "nothing was changed");
    let directory = shared_directory();
    let script = directory.path().join("attach.sql");
    std::fs::write(&script, ended.stdout).unwrap();
    let file = script.to_str().unwrap();
    let psql = ["--quiet", "--set=ON_ERROR_STOP=1", "--file", file, &url];
    stack.run_postgres_client("psql", &psql).await;
    let node = node_on(&stack, &url, "products").await;
    assert_eq!(node.product(1).await.name, "it's");
    run(&sql, "UPDATE products SET name = 'new'").await;
    eventually("the write is served", async || node.product(1).await.name == "new").await;
    let ended = Program::run(&["attach", "products", "--if-needed", "--database-url", &url]).await;
    assert_eq!(ended.code, Some(0), "the migrations are up to date: {}", ended.stderr);
}

async fn asks(stack: Stack) {
    let (url, sql) = database(&stack, "asks", SEED).await;
    let ended = Program::run(&["attach", "products", "--database-url", &url]).await;
    assert_eq!(ended.code, Some(1));
    let words = ["price        price (numeric(10,2))", "USD for all prices", "--yes"];
    assert!(words.iter().all(|word| ended.stderr.contains(word)), "{}", ended.stderr);
    let columns = "SELECT count(*) FROM pg_attribute WHERE attname = 'hotshelf_version'";
    assert_eq!(number(&sql, columns).await, 0);
    // A terminal, by script(1), on which nothing but yes is consent.
    for (answer, code) in [("no", 1), ("y", 0)] {
        let attach =
            format!("{} attach products --database-url {url}", env!("CARGO_BIN_EXE_hotshelf"));
        let mut script = tokio::process::Command::new("sh");
        let on_terminal =
            format!("echo {answer} | script --quiet --return --command '{attach}' /dev/null");
        script.args(["-c", &on_terminal]).current_dir(std::env::temp_dir());
        let ended = finish(&mut script, HOUR).await;
        assert_eq!(ended.is_ok(), code == 0, "{ended:?}");
    }
    assert_eq!(number(&sql, columns).await, 1);
}

async fn unset(stack: Stack) {
    let table = "CREATE TABLE shop (id int PRIMARY KEY, name text, price numeric, currency text, \
        description text, created_at timestamp, updated_at date)";
    let (url, sql) = database(&stack, "unset", table).await;
    run(
        &sql,
        "INSERT INTO shop VALUES (1, NULL, NULL, NULL, NULL, NULL, NULL), \
         (2, 'twice', -1.5, 'EUR', '', '2024-05-06 07:08:09', '2024-05-07'), (3, 'twice', 1, 'EUR', '', 'infinity', NULL)",
    )
    .await;
    attach(&url, "shop").await.unwrap();
    let node = node_on(&stack, &url, "").await;
    assert_eq!(node.product(1).await, Product { id: 1, version: 1, ..Product::default() });
    let product = node.product(2).await;
    assert_eq!((price(&product), &*product.name), (Some((-1, -500_000_000)), "twice"));
    assert_eq!(product.create_time.unwrap().seconds, 1_714_979_289, "a time of UTC");
    assert_eq!(product.update_time.unwrap().seconds, 1_715_040_000);
    assert!(node.get(3).await.unwrap_err().message().contains("create_time"));
    // An update sets the column of the update time, and gives the row a version.
    let request = update(Product { id: 1, name: "named".into(), ..Product::default() }, &["name"]);
    let updated = node.client.clone().update_product(request).await.unwrap().into_inner();
    assert!(updated.version > 1 && updated.update_time.is_some() && updated.price.is_none());
    let today = "SELECT count(*) FROM shop WHERE id = 1 AND updated_at >= current_date - 1 AND name = 'named'";
    assert_eq!(number(&sql, today).await, 1);
}

async fn cents(stack: Stack) {
    let table = "CREATE TABLE p (id serial PRIMARY KEY, title text, price_cents int); \
        CREATE TABLE q (id smallserial PRIMARY KEY, title text, price bigint)";
    let (url, sql) = database(&stack, "cents", table).await;
    run(&sql, "INSERT INTO p (title, price_cents) VALUES ('a', 1299), ('b', -5)").await;
    run(&sql, "INSERT INTO q (title, price) VALUES ('a', 1299)").await;
    attach(&url, "p").await.unwrap();
    let refused = attach(&url, "q").await.unwrap_err();
    assert!(refused.contains("--price-decimals"), "{refused}");
    let (currency, price_decimals) = (Some("JPY".to_owned()), Some(0));
    let table = "q".to_owned();
    let options = AttachOptions { table, currency, price_decimals, ..AttachOptions::default() };
    attach_with(&url, &options).await.unwrap();
    let (p, q) = (node_on(&stack, &url, "p").await, node_on(&stack, &url, "q").await);
    assert_eq!(price(&p.product(1).await), Some((12, 990_000_000)));
    assert_eq!(price(&p.product(2).await), Some((0, -50_000_000)));
    let mut yen = q.product(1).await;
    assert_eq!(price(&yen), Some((1_299, 0)));
    // What the column or the currency cannot keep is refused, never rounded.
    yen.price.as_mut().unwrap().nanos = 500_000_000;
    let refused = q.client.clone().update_product(update(yen.clone(), &["price"])).await;
    assert!(refused.unwrap_err().message().starts_with("product.price.nanos: "));
    yen.price = Some(hotshelf::proto::Money { currency_code: "USD".into(), units: 1, nanos: 0 });
    let refused = q.client.clone().update_product(update(yen, &["price"])).await;
    assert!(refused.unwrap_err().message().starts_with("product.price.currency_code: "));
    let mut dollars = p.product(1).await;
    dollars.price =
        Some(hotshelf::proto::Money { currency_code: "USD".into(), units: 7, nanos: 50_000_000 });
    p.client.clone().update_product(update(dollars, &["price"])).await.unwrap();
    assert_eq!(number(&sql, "SELECT price_cents::bigint FROM p WHERE id = 1").await, 705);
}

async fn partitioned(stack: Stack) {
    let table = "CREATE TABLE parts (id bigint PRIMARY KEY, name text, price numeric) PARTITION BY RANGE (id); \
        CREATE TABLE parts_a PARTITION OF parts FOR VALUES FROM (1) TO (100); \
        CREATE TABLE parts_b PARTITION OF parts FOR VALUES FROM (100) TO (200)";
    let (url, sql) = database(&stack, "parts", table).await;
    run(&sql, "INSERT INTO parts VALUES (1, 'a', 1), (100, 'b', 2)").await;
    attach(&url, "parts").await.unwrap();
    let node = node_on(&stack, &url, "").await;
    assert_eq!(node.product(100).await.name, "b");
    run(&sql, "UPDATE parts_b SET name = 'new'; DELETE FROM parts_a").await;
    eventually("writes to partitions are served", async || {
        node.product(100).await.name == "new" && node.get(1).await.is_err()
    })
    .await;
    let request = update(Product { id: 100, name: "api".into(), ..Product::default() }, &["name"]);
    node.client.clone().update_product(request).await.unwrap();
    assert_eq!(node.product(100).await.name, "api");
}

async fn hostile(stack: Stack) {
    let long = "ü".repeat(31);
    let table = format!(
        r#"CREATE SCHEMA "My ""Schema"""; CREATE TABLE "My ""Schema"""."Table; DROP TABLE x; --" (
            "{{id}} {{n}} %s $1 'x'" serial PRIMARY KEY, "last" text, "Price""; --" numeric(10,2), "select" text,
            "{long}" int, "given" text, "product" text, "E\\n'" text, "hotshelf_line" int)"#
    );
    let (url, sql) = database(&stack, "hostile", &table).await;
    let name = r#""My ""Schema"""."Table; DROP TABLE x; --""#;
    let insert = format!(r#"INSERT INTO {name} ("last", "Price""; --") VALUES ('a', 1.5)"#);
    run(&sql, &insert).await;
    let mut options = AttachOptions { table: name.to_owned(), ..AttachOptions::default() };
    options.columns.name = Some("last".to_owned());
    options.columns.price = Some("Price\"; --".to_owned());
    options.catalogue = Some("it's \"hostile\"".to_owned());
    attach_with(&url, &options).await.unwrap();
    let node = node_on(&stack, &url, "it's \"hostile\"").await;
    let read = node.product(1).await;
    assert_eq!((price(&read), &*read.name), (Some((1, 500_000_000)), "a"));
    let keys: Vec<String> = read.attributes.clone().unwrap().fields.into_keys().collect();
    assert_eq!(keys, ["E\\\\n'", "given", "hotshelf_line", "product", "select", &long]);
    let value = |text: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(text.to_owned())),
    };
    let mut changed = read;
    changed.name = "'; DROP TABLE x; --".to_owned();
    let fields = ["E\\\\n'", "select", "given"].map(|name| (name.to_owned(), value("set")));
    changed.attributes = Some(prost_types::Struct { fields: fields.into_iter().collect() });
    let paths = ["name", "attributes.E\\\\n'", "attributes.select", "attributes.`given`"];
    let updated =
        node.client.clone().update_product(update(changed.clone(), &paths)).await.unwrap();
    assert_eq!(updated.get_ref().attributes.as_ref().unwrap().fields["select"], value("set"));
    run(&sql, &format!(r#"UPDATE {name} SET "last" = 'sql'"#)).await;
    eventually("SQL is served", async || node.product(1).await.name == "sql").await;
    let create =
        hotshelf::proto::CreateProductRequest { product: Some(Product { id: 0, ..changed }) };
    let created = node.client.clone().create_product(create).await.unwrap().into_inner();
    assert_eq!(created.id, 2);
    let csv = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&csv, "id,name,price\n1,imported,2\n77,imported,3\n,imported,4\n").unwrap();
    let file = csv.path().to_str().unwrap();
    let catalogue = "it's \"hostile\"";
    let import = ["import", "--database-url", &url, "--catalog", catalogue, file];
    let ended = Program::run(&import).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("2 inserted, 1 updated"), "{}", ended.stderr);
    let ended = Program::run(&["detach", name, "--yes", "--database-url", &url]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

async fn two(stack: Stack) {
    let (url, sql) = database(
        &stack,
        "two",
        &format!("{SEED}; CREATE SCHEMA b; CREATE TABLE b.products (LIKE products INCLUDING ALL)"),
    )
    .await;
    run(&sql, "INSERT INTO products VALUES (1, 'first', 1); INSERT INTO b.products VALUES (1, 'second', 2)").await;
    attach(&url, "products").await.unwrap();
    attach(&url, "b.products").await.unwrap();
    let mut args = stack.args();
    args.database.database_url.clone_from(&url);
    let refused = hotshelf::app::App::start(&args).await.unwrap_err().to_string();
    assert!(refused.contains("CATALOG") && refused.contains("b.products"), "{refused}");
    let first = node_on(&stack, &url, "products").await;
    let second = node_on(&stack, &url, "b.products").await;
    // The same id, the same version, one Redis and one namespace.
    assert_eq!(first.product(1).await.name, "first");
    assert_eq!(second.product(1).await.name, "second");
    run(&sql, "UPDATE b.products SET name = 'changed'").await;
    eventually("it is served", async || second.product(1).await.name == "changed").await;
    assert_eq!(first.product(1).await.name, "first");
    run(&sql, "DELETE FROM b.products").await;
    eventually("it is gone", async || second.get(1).await.is_err()).await;
    crate::feed::polls(&first, 3).await;
    let changes = "hotshelf_recent_changes";
    assert!(second.metric(changes).await > 0.0);
    assert_eq!(first.metric(changes).await, 0.0, "changes of the other one are not its own");
    assert_eq!(first.product(1).await.version, 1);
    run(&sql, "TRUNCATE b.products; INSERT INTO products VALUES (2, 'third', 3)").await;
    assert_eq!(first.product(1).await.name, "first");
    eventually("each has what was written to it", async || {
        first.get(2).await.is_ok() && second.get(2).await.is_err()
    })
    .await;
}
