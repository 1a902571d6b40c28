//! A CSV file is imported whole or not at all, and importing it again changes nothing.

mod as_found;

use std::fmt::Write;
use std::path::Path;
use std::process::Stdio;

use hotshelf::config::DatabaseArgs;
use hotshelf::import::{self, Error, ImportOptions, Summary};
use hotshelf::metrics::Metrics;
use hotshelf::postgres::{Import, ImportColumns, ImportTable, Merged, Postgres};
use hotshelf::product::{NewProduct, Price};
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Executor};
use tokio::io::AsyncWriteExt;

use crate::harness::{HANG, Program, Stack, Suite, eventually};

pub fn register(suite: &mut Suite<'_>) {
    suite.single("import::every_value_arrives_as_it_was", values);
    suite.single("import::the_same_file_again_takes_no_versions_and_no_outbox_rows", again);
    suite.single("import::only_products_that_differ_are_written", differing);
    suite.single("import::without_a_column_for_them_descriptions_stay", descriptions_stay);
    suite.single("import::rows_without_id_become_new_products_in_the_order_of_the_file", new_ids);
    suite.single("import::ids_assigned_later_are_past_those_of_the_file", ids_advance);
    suite.single("import::a_product_can_be_created_while_an_import_writes", created_meanwhile);
    suite.single(
        "import::a_row_that_already_has_the_values_is_not_written_again",
        written_meanwhile,
    );
    suite.single("import::after_a_bad_row_nothing_is_imported", bad_row);
    suite.single("import::with_skip_bad_the_bad_rows_are_left_out_and_counted", skip_bad);
    suite.single("import::an_id_that_two_rows_have_is_refused", duplicate_id);
    suite.single("import::an_import_that_is_dropped_leaves_nothing", dropped);
    suite.single("import::the_program_reports_the_error_on_one_line_and_fails", program_fails);
    suite.single("import::the_program_reads_standard_input", program_stdin);
    suite.single(
        "import::files_of_any_delimiter_encoding_and_compression_are_read",
        as_found::files,
    );
    suite.single("import::attributes_get_the_types_of_their_columns", as_found::attributes);
    suite.single(
        "import::rows_that_a_type_refuses_are_found_by_their_line",
        as_found::refused_by_types,
    );
    suite.single("import::without_a_column_for_it_the_currency_stays", as_found::currency_stays);
    suite.single("import::a_dry_run_writes_nothing_and_counts_the_same", as_found::dry_run);
    suite.single("import::an_import_that_failed_goes_on_from_the_line_it_names", as_found::resumed);
    suite.alone(|suite| {
        suite.single("import::a_file_of_many_chunks_is_imported_whole", many_chunks);
        suite.single("import::two_imports_at_once_wait_for_each_other", two_at_once);
    });
}

async fn postgres(stack: &Stack) -> Postgres {
    let database = DatabaseArgs::of(stack.database_url.clone());
    let postgres = Postgres::new(&database.one_connection(), Metrics::new()).unwrap();
    postgres.open_catalogue().await.unwrap();
    postgres
}

async fn import(stack: &Stack, csv: &str, skip_bad: bool) -> Result<Summary, Error> {
    let options = ImportOptions { skip_bad, ..ImportOptions::default() };
    import_with(stack, csv, options).await
}

async fn import_with(
    stack: &Stack,
    content: impl AsRef<[u8]>,
    options: ImportOptions,
) -> Result<Summary, Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, content).unwrap();
    let options = ImportOptions { file: file.path().to_owned(), ..options };
    import::run(&postgres(stack).await, &options).await
}

async fn import_all(stack: &Stack, csv: &str) -> Merged {
    import(stack, csv, false).await.unwrap().merged
}

type Product = (i64, String, String, String, String);

async fn products(sql: &PgPool) -> Vec<Product> {
    sqlx::query_as(
        "SELECT id, name, price::text, currency::text, description FROM products ORDER BY id",
    )
    .fetch_all(sql)
    .await
    .unwrap()
}

fn product(id: i64, name: &str, price: &str, currency: &str, description: &str) -> Product {
    (id, name.into(), price.into(), currency.into(), description.into())
}

async fn number(sql: &PgPool, query: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(sql).await.unwrap()
}

/// The last assigned version and the changes in the outbox, which grow only with writes.
async fn marks(sql: &PgPool) -> (i64, i64) {
    let version = number(sql, "SELECT last_value FROM hotshelf.product_version").await;
    (
        version,
        number(sql, "SELECT coalesce(sum(cardinality(versions)), 0)::bigint FROM hotshelf.outbox")
            .await,
    )
}

/// The id that Postgres assigns next.
async fn assigned_id(sql: &PgPool) -> i64 {
    number(sql, "INSERT INTO products (name, price) VALUES ('assigned', 1) RETURNING id").await
}

async fn values(stack: Stack) {
    let csv = "\u{feff}description,price,currency,name,id\r\n\
        \"a\tb\r\nc\\nd \"\"e\"\"\",0.5,JPY,\\N,9223372036854775806\r\n\
        \\.,99999999.99,,\"Ünïcode, 商品\",1\r\n\
        \r\n\
        ,7,EUR,'; DROP TABLE products; --,2";
    let merged = import_all(&stack, csv).await;
    assert_eq!(merged, Merged { inserted: 3, updated: 0, unchanged: 0 });
    let expected = [
        product(1, "Ünïcode, 商品", "99999999.99", "USD", "\\."),
        product(2, "'; DROP TABLE products; --", "7.00", "EUR", ""),
        product(i64::MAX - 1, "\\N", "0.50", "JPY", "a\tb\r\nc\\nd \"e\""),
    ];
    assert_eq!(products(&stack.sql).await, expected);
}

async fn many_chunks(stack: Stack) {
    let mut csv = "id,name,price,description\n".to_owned();
    for id in 1..=5000 {
        writeln!(csv, "{id},Lamp {id},{id}.25,{}", "x".repeat(1000)).unwrap();
    }
    assert_eq!(import_all(&stack, &csv).await.inserted, 5000);
    let right = "SELECT count(*) FROM products WHERE name = 'Lamp ' || id AND price = id + 0.25 \
                 AND length(description) = 1000";
    assert_eq!(number(&stack.sql, right).await, 5000);
    // Version 1 is that of rows that were not written since the table was attached.
    assert_eq!(marks(&stack.sql).await, (5001, 5000));
}

async fn again(stack: Stack) {
    let csv = "id,name,price,description\n1,Lamp,1.50,Round\n2,Chair,20,\n";
    import_all(&stack, csv).await;
    let before = marks(&stack.sql).await;
    let merged = import_all(&stack, csv).await;
    assert_eq!(merged, Merged { inserted: 0, updated: 0, unchanged: 2 });
    assert_eq!(marks(&stack.sql).await, before);
}

async fn differing(stack: Stack) {
    let header = "id,name,price,currency,description\n";
    let old = "1,Lamp,1,USD,a\n2,Lamp,1,USD,a\n3,Lamp,1,USD,a\n4,Lamp,1,USD,a\n5,Lamp,1,USD,a\n";
    import_all(&stack, &format!("{header}{old}")).await;
    let (_, outbox) = marks(&stack.sql).await;
    let new = "1,Lamp,1,USD,a\n2,Lump,1,USD,a\n3,Lamp,2,USD,a\n4,Lamp,1,EUR,a\n5,Lamp,1,USD,b\n6,Lamp,1,USD,a\n";
    let merged = import_all(&stack, &format!("{header}{new}")).await;
    assert_eq!(merged, Merged { inserted: 1, updated: 4, unchanged: 1 });
    let changed = "SELECT coalesce(sum(product_id), 0)::bigint FROM (SELECT unnest(product_ids) AS product_id, \
                   unnest(versions) AS version FROM hotshelf.outbox) c JOIN products p ON p.id = product_id AND p.hotshelf_version = c.version WHERE c.version > 5";
    assert_eq!(number(&stack.sql, changed).await, 2 + 3 + 4 + 5 + 6);
    assert_eq!(marks(&stack.sql).await.1, outbox + 5);
    assert_eq!(products(&stack.sql).await[3], product(4, "Lamp", "1.00", "EUR", "a"));
}

async fn descriptions_stay(stack: Stack) {
    import_all(&stack, "id,name,price,description\n1,Lamp,1,Round\n2,Chair,2,Oak\n").await;
    let merged = import_all(&stack, "id,name,price\n1,Lamp,9\n2,Chair,2\n").await;
    assert_eq!(merged, Merged { inserted: 0, updated: 1, unchanged: 1 });
    let expected =
        [product(1, "Lamp", "9.00", "USD", "Round"), product(2, "Chair", "2.00", "USD", "Oak")];
    assert_eq!(products(&stack.sql).await, expected);
    import_all(&stack, "id,name,price,description\n1,Lamp,9,\n").await;
    assert_eq!(products(&stack.sql).await[0], product(1, "Lamp", "9.00", "USD", ""));
}

async fn new_ids(stack: Stack) {
    let csv = "id,name,price\n,first,1\n3,third,3\n,second,2\n";
    assert_eq!(import_all(&stack, csv).await.inserted, 3);
    let names: Vec<String> =
        products(&stack.sql).await.into_iter().map(|(_, name, ..)| name).collect();
    assert_eq!(names, ["third", "first", "second"]);
    // Rows without an id are new products each time.
    assert_eq!(import_all(&stack, csv).await, Merged { inserted: 2, updated: 0, unchanged: 1 });
}

async fn ids_advance(stack: Stack) {
    let import_id = async |id: i64| {
        import_all(&stack, &format!("id,name,price\n{id},Lamp,1\n")).await;
        assigned_id(&stack.sql).await
    };
    assert_eq!(import_id(1).await, 2);
    assert_eq!(import_id(7).await, 8);
    assert_eq!(import_id(3).await, 9, "it never goes back");
    assert_eq!(import_id(5_000_000).await, 5_000_001);
    assert_eq!(import_id(5_000_002).await, 5_000_003);
    // An explicit id past the sequence.
    stack
        .sql
        .execute("INSERT INTO products (id, name, price) VALUES (5000004, 'x', 1)")
        .await
        .unwrap();
    import_all(&stack, "name,price\nLamp,1\n").await;
    assert_eq!(assigned_id(&stack.sql).await, 5_000_006);
    // After the largest id there would be none to assign.
    assert_eq!(import_id(i64::MAX).await, 5_000_007);
}

/// Imports `csv` while an open transaction sets the price of product 2 to 2, and runs `meanwhile` when the import waits
/// for that transaction.
async fn import_behind_a_writer(stack: &Stack, csv: &str, meanwhile: impl Future) -> Merged {
    let sql = &stack.sql;
    sql.execute("INSERT INTO products (id, name, price) VALUES (2, 'x', 1)").await.unwrap();
    let mut writer = sql.begin().await.unwrap();
    writer.execute("UPDATE products SET price = 2 WHERE id = 2").await.unwrap();
    let behind = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                       AND datname = current_database() AND query LIKE '%INSERT INTO \"public\".\"products\" AS%'";
        eventually("it waits", || async { number(sql, waiting).await == 1 }).await;
        tokio::time::timeout(HANG, meanwhile).await.expect("does not wait for the import");
        writer.commit().await.unwrap();
    };
    tokio::join!(import_all(stack, csv), behind).0
}

async fn created_meanwhile(stack: Stack) {
    let create = async { assert_eq!(assigned_id(&stack.sql).await, 4) };
    let csv = "id,name,price\n1,Lamp,1\n2,Lamp,1\n3,Lamp,1\n";
    let merged = import_behind_a_writer(&stack, csv, create).await;
    assert_eq!(merged, Merged { inserted: 2, updated: 1, unchanged: 0 });
}

async fn written_meanwhile(stack: Stack) {
    let merged = import_behind_a_writer(&stack, "id,name,price\n2,x,2\n", async {}).await;
    assert_eq!(merged, Merged { inserted: 0, updated: 0, unchanged: 1 });
    assert_eq!(marks(&stack.sql).await.1, 2, "inserted, and written by the other one");
}

async fn two_at_once(stack: Stack) {
    let csv = |price: u32, ids: &mut dyn Iterator<Item = u32>| {
        ids.fold("id,name,price\n".to_owned(), |csv, id| format!("{csv}{id},Lamp,{price}\n"))
    };
    import_all(&stack, &csv(1, &mut (1..=2000))).await;
    let (up, down) = (csv(2, &mut (1..=2000)), csv(3, &mut (1..=2000).rev()));
    let (first, second) = tokio::join!(import_all(&stack, &up), import_all(&stack, &down));
    assert_eq!((first.updated, second.updated), (2000, 2000));
    let prices = number(&stack.sql, "SELECT count(DISTINCT price) FROM products").await;
    assert_eq!(prices, 1, "one after the other, as a whole");
}

async fn bad_row(stack: Stack) {
    let error = import(&stack, "name,price\nLamp,1\nChair,1.005\n", false).await.unwrap_err();
    let message = error.to_string();
    let expected =
        ", line 3, column price: must not have more than two decimals; nothing was imported";
    assert!(message.ends_with(expected), "{message}");
    assert_eq!(products(&stack.sql).await, []);
    assert_eq!(marks(&stack.sql).await.1, 0);
}

async fn skip_bad(stack: Stack) {
    let csv = "id,name,price\n1,Lamp,1\n2,,1\nx,Lamp,1\n3,Lamp\n4,Lamp,1\n";
    let summary = import(&stack, csv, true).await.unwrap();
    assert_eq!((summary.rows, summary.left_out, summary.merged.inserted), (5, 3, 2));
    let ids: Vec<i64> = products(&stack.sql).await.into_iter().map(|(id, ..)| id).collect();
    assert_eq!(ids, [1, 4]);
    let all_bad = import(&stack, "name,price\n,1\nLamp,x\n", true).await.unwrap_err().to_string();
    assert!(all_bad.ends_with("all 2 rows are bad; nothing was imported"), "{all_bad}");
}

async fn duplicate_id(stack: Stack) {
    for skip_bad in [false, true] {
        let csv = "id,name,price\n7,Lamp,1\n8,Lamp,1\n,Lamp,1\n,Lamp,1\n7,Lamp,1\n";
        let message = import(&stack, csv, skip_bad).await.unwrap_err().to_string();
        let expected = ", line 6: the id 7 is that of line 2; nothing was imported";
        assert!(message.ends_with(expected), "{message}");
        assert_eq!(products(&stack.sql).await, []);
    }
}

async fn dropped(stack: Stack) {
    let postgres = postgres(&stack).await;
    let product = NewProduct {
        name: "Lamp".to_owned().try_into().unwrap(),
        price: Price::new(100, "USD".parse().unwrap()).unwrap(),
        description: "x".repeat(50_000).try_into().unwrap(),
        attributes: None,
    };
    let (table, columns) = (ImportTable::of(&postgres).unwrap(), ImportColumns::default());
    let mut import = Import::begin(&postgres, &table, &columns).await.unwrap();
    for line in 2..100 {
        import.push(line, None, &product, &[]).await.unwrap();
    }
    drop(import);
    // The pool has one connection, so this waits until the import has released it.
    assert!(!postgres.has_products().await.unwrap());
    let import = Import::begin(&postgres, &table, &columns).await.unwrap();
    assert_eq!(import.finish().await.unwrap(), Merged::default());
}

async fn run_program(stack: &Stack, file: &Path) -> (Option<i32>, String) {
    let file = file.to_str().unwrap();
    let ended = Program::run(&["import", "--database-url", &stack.database_url, file]).await;
    (ended.code, ended.stderr)
}

async fn program_fails(stack: Stack) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("products.csv");
    std::fs::write(&file, "name,price,color\n").unwrap();
    let (code, stderr) = run_program(&stack, &file).await;
    assert_eq!(code, Some(1));
    assert!(stderr.contains("products.csv, line 1: unknown columns: \"color\"; "), "{stderr}");
    let errors = stderr.lines().filter(|line| line.starts_with("hotshelf: "));
    assert_eq!(errors.count(), 1, "{stderr}");
    let (code, stderr) = run_program(&stack, &directory.path().join("absent.csv")).await;
    assert_eq!(code, Some(1));
    assert!(stderr.contains("absent.csv: No such file"), "{stderr}");
}

async fn program_stdin(stack: Stack) {
    let arguments = ["import", "--database-url", &stack.database_url, "-"];
    let mut program = Program::command(&arguments).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = program.stdin.take().unwrap();
    stdin.write_all(b"id,name,price\n1,Lamp,1.50\n").await.unwrap();
    drop(stdin);
    let ended =
        tokio::time::timeout(HANG, program.wait_with_output()).await.expect("ends").unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success(), "{stderr}");
    assert!(stderr.contains("1 rows in "), "{stderr}");
    assert_eq!(products(&stack.sql).await, [product(1, "Lamp", "1.50", "USD", "")]);
}
