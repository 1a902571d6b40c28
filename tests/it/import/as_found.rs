//! Files as people have them: their delimiters, encodings, numbers and columns.

use std::fmt::Write as _;
use std::io::Write as _;

use hotshelf::import::ImportOptions;
use hotshelf::postgres::Merged;
use sqlx::Executor;

use super::{assigned_id, import, import_all, import_with, marks, number, product, products};
use crate::harness::{Program, Stack};

pub async fn files(stack: Stack) {
    let csv = "sep=;\r\nArtikel;Bezeichnung;Preis;Notiz\r\n7;Lämpchen;1.299,50;x\r\n";
    let mut utf_16: Vec<u8> = vec![0xff, 0xfe];
    utf_16.extend(csv.encode_utf16().flat_map(u16::to_le_bytes));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&utf_16).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("export.csv.gz");
    std::fs::write(&file, gzip.finish().unwrap()).unwrap();
    let arguments = [
        "import",
        "--database-url",
        &stack.database_url,
        "--map",
        "Artikel=id",
        "--map",
        "Bezeichnung=name",
        "--map",
        "Preis=price",
        "--ignore-extra",
        "--decimal-comma",
        file.to_str().unwrap(),
    ];
    let ended = Program::run(&arguments).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("hotshelf: columns left out: Notiz\n"), "{}", ended.stderr);
    assert_eq!(products(&stack.sql).await, [product(7, "Lämpchen", "1299.50", "USD", "")]);
}

/// Adds columns to the table, and attaches it again.
async fn with_attributes(stack: &Stack) {
    let add = "ALTER TABLE products ADD sku text, ADD stock smallint NOT NULL DEFAULT 5, \
        ADD tags text[], ADD data json, ADD seen timestamptz, ADD note text NOT NULL DEFAULT 'none', \
        ADD twice bigint GENERATED ALWAYS AS (id * 2) STORED";
    stack.sql.execute(add).await.unwrap();
    let again = ["attach", "products", "--again", "--attributes", "all", "--yes"];
    let ended =
        Program::run(&[&again[..], &["--database-url", &stack.database_url]].concat()).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

pub async fn attributes(stack: Stack) {
    with_attributes(&stack).await;
    let csv = "id,name,price,SKU,stock,tags,data,seen,note\n\
        1,Lamp,1,a\\1,7,\"{x,\"\"y z\"\"}\",\"{\"\"a\"\": [1]}\",2026-01-02 03:04:05+00,\n\
        2,Desk,2,,-3,,,,hello\n\
        ,New,3,n,1,,,,\n";
    let inserted = import_all(&stack, csv).await;
    assert_eq!(inserted, Merged { inserted: 3, updated: 0, unchanged: 0 });
    let rows = "SELECT id, concat_ws('|', sku, stock, tags::text, data::text, \
        seen AT TIME ZONE 'UTC', '<' || note || '>', twice) FROM products ORDER BY id";
    let rows = async || -> Vec<(i64, String)> {
        sqlx::query_as(rows).fetch_all(&stack.sql).await.unwrap()
    };
    let expected = [
        (1, "a\\1|7|{x,\"y z\"}|{\"a\": [1]}|2026-01-02 03:04:05|<>|2"),
        (2, "-3|<hello>|4"),
        (3, "n|1|<>|6"),
    ];
    assert_eq!(rows().await, expected.map(|(id, text)| (id, text.to_owned())));
    let with_ids = csv.replace("\n,New", "\n3,New");
    let again = import_all(&stack, &with_ids).await;
    assert_eq!(again, Merged { inserted: 0, updated: 0, unchanged: 3 });
    // Attributes that the file lacks keep their values, and new products get their defaults.
    let merged = import_all(&stack, "id,name,price,sku\n1,Lamp,1,b2\n2,Desk,2,\n9,Nine,9,\n").await;
    assert_eq!(merged, Merged { inserted: 1, updated: 1, unchanged: 1 });
    assert!(rows().await[0].1.starts_with("b2|7|{x,"), "{:?}", rows().await);
    assert_eq!(rows().await[3], (9, "5|<none>|18".to_owned()));
    let computed = import(&stack, "name,price,twice\nLamp,1,2\n", false).await.unwrap_err();
    assert!(computed.to_string().contains("unknown columns: \"twice\""), "{computed}");
}

pub async fn refused_by_types(stack: Stack) {
    with_attributes(&stack).await;
    let mut csv = "id,name,price,stock,seen\n".to_owned();
    let bad = [3, 4, 900, 1_999, 2_000];
    for id in 1..=2_000 {
        let stock = if bad.contains(&id) { "many" } else { "7" };
        writeln!(csv, "{id},{},1,{stock},", "x".repeat(200)).unwrap();
    }
    let error = import(&stack, &csv, false).await.unwrap_err().to_string();
    let expected = ", line 4, column stock: invalid input syntax for type smallint: \"many\"; nothing was imported";
    assert!(error.ends_with(expected), "{error}");
    let summary = import(&stack, &csv, true).await.unwrap();
    assert_eq!((summary.rows, summary.left_out, summary.merged.inserted), (2_000, 5, 1_995));
    assert_eq!(number(&stack.sql, "SELECT count(*) FROM products WHERE stock = 7").await, 1_995);
    let again = import(&stack, &csv, true).await.unwrap().merged;
    assert_eq!(again, Merged { inserted: 0, updated: 0, unchanged: 1_995 });
    for (value, why) in [
        ("40000", "stock: value \"40000\" is out of range for type smallint"),
        ("", "stock: must not be empty"),
    ] {
        let csv = format!("name,price,stock\nLamp,1,7\nLamp,1,{value}\n");
        let error = import(&stack, &csv, false).await.unwrap_err().to_string();
        assert!(
            error.ends_with(&format!(", line 3, column {why}; nothing was imported")),
            "{error}"
        );
    }
    stack.sql.execute("ALTER TABLE products ADD CHECK (stock < 100)").await.unwrap();
    let error = import(&stack, "name,price,stock\nLamp,1,101\n", true).await.unwrap_err();
    assert!(error.to_string().contains("violates check constraint"), "{error}");
}

pub async fn currency_stays(stack: Stack) {
    import_all(&stack, "id,name,price,currency\n1,Lamp,1,EUR\n").await;
    let merged = import_all(&stack, "id,name,price\n1,Lamp,2\n2,Desk,3\n").await;
    assert_eq!(merged, Merged { inserted: 1, updated: 1, unchanged: 0 });
    let expected = [product(1, "Lamp", "2.00", "EUR", ""), product(2, "Desk", "3.00", "USD", "")];
    assert_eq!(products(&stack.sql).await, expected);
}

pub async fn dry_run(stack: Stack) {
    import_all(&stack, "id,name,price\n1,Lamp,1\n2,Desk,2\n").await;
    let (marks_before, before) = (marks(&stack.sql).await, products(&stack.sql).await);
    let csv = "id,name,price\n1,Lamp,1\n2,Desk,9\n3,New,3\n,New,4\n,New,5\nx,Bad,1\n";
    let options = |dry_run| ImportOptions { dry_run, skip_bad: true, ..ImportOptions::default() };
    let dry = import_with(&stack, csv, options(true)).await.unwrap();
    assert!(dry.to_string().starts_with("dry run, nothing was written: 6 rows in "), "{dry}");
    assert_eq!((marks(&stack.sql).await, products(&stack.sql).await), (marks_before, before));
    assert_eq!(assigned_id(&stack.sql).await, 3, "no id was taken");
    stack.sql.execute("DELETE FROM products WHERE id = 3").await.unwrap();
    let wet = import_with(&stack, csv, options(false)).await.unwrap();
    assert_eq!((dry.merged, dry.left_out), (wet.merged, wet.left_out));
    assert_eq!(wet.merged, Merged { inserted: 3, updated: 1, unchanged: 1 });
    let duplicate = import_with(&stack, "id,name,price\n1,a,1\n1,a,1\n", options(true)).await;
    assert!(duplicate.unwrap_err().to_string().contains("the id 1 is that of line 2"));
}

pub async fn resumed(stack: Stack) {
    let csv = "id,name,price,description\n1,a,1,\"two\nlines\"\n2,b,2,\n3,c,3,\n4,d,4,\n5,e,bad,\n6,f,6,\n";
    let options = |from_line| ImportOptions {
        commit_every: Some(2.try_into().unwrap()),
        from_line,
        ..ImportOptions::default()
    };
    let error = import_with(&stack, csv, options(1)).await.unwrap_err().to_string();
    let expected = "line 7, column price: \"bad\" is not a price such as 12.50; \
        what is before line 7 is imported: go on with --from-line 7";
    assert!(error.ends_with(expected), "{error}");
    assert_eq!(products(&stack.sql).await.len(), 4);
    let mended = csv.replace("bad", "5");
    let rest = import_with(&stack, &mended, options(7)).await.unwrap();
    assert_eq!((rest.rows, rest.merged.inserted), (2, 2));
    assert_eq!(products(&stack.sql).await.len(), 6);
}
