//! A value that SQL accepts and the API cannot express affects only its product, and an update repairs it.

use hotshelf::proto::{BatchGetProductsRequest, Money, Product, UpdateProductRequest};
use prost_types::FieldMask;
use sqlx::PgPool;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::{Node, Stack, Suite, attach, connect};
use crate::schema::run;

pub fn register(suite: &mut Suite<'_>) {
    suite.single("rows::a_value_that_the_api_cannot_express_fails_its_product_alone", broken);
    suite.single("rows::an_update_that_replaces_the_value_repairs_the_product", repaired);
    suite.single("rows::in_sql_ascii_text_that_is_not_utf_8_fails_its_product_alone", sql_ascii);
    suite.single("rows::in_an_encoding_of_one_byte_the_rest_is_converted", one_byte);
    suite.single("rows::prices_and_times_up_to_the_bounds_are_served_exactly", bounds);
    suite.single(
        "rows::an_update_of_a_product_that_is_created_meanwhile_is_made",
        created_meanwhile,
    );
}

/// Drops the constraints and widens the types, so that SQL can write any value.
const LOOSEN: &str = "ALTER TABLE products DROP CONSTRAINT products_price_check, DROP CONSTRAINT products_currency_check, \
    DROP CONSTRAINT products_name_check, ALTER name DROP NOT NULL, ALTER price DROP NOT NULL, ALTER currency DROP NOT NULL, \
    ALTER description DROP NOT NULL, ALTER create_time DROP NOT NULL, ALTER price TYPE numeric, ALTER currency TYPE text";

const BROKEN: [(&str, &str); 10] = [
    ("create_time", "create_time = 'infinity'"),
    ("create_time", "create_time = '-infinity'"),
    ("create_time", "create_time = '0001-01-01 00:00:00+00'::timestamptz - interval '1 s'"),
    ("create_time", "create_time = '10000-01-01 00:00:00+00'"),
    ("price", "price = 'NaN'"),
    ("price", "price = 'Infinity'"),
    ("price", "price = 1000000000000000000"),
    ("price", "price = 0.0000000001"),
    ("currency", "currency = 'eu'"),
    ("currency", "currency = NULL"),
];

fn assert_unreadable(status: &Status, column: &str) {
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    let info = status.get_error_details().error_info().unwrap().clone();
    assert_eq!(info.reason, "PRODUCT_UNREADABLE", "{status:?}");
    assert_eq!(info.metadata["column"], column, "{status:?}");
}

async fn break_one(sql: &PgPool, id: i64, breaks: &str) {
    run(sql, &format!("UPDATE products SET {breaks} WHERE id = {id}")).await;
}

async fn broken(stack: Stack) {
    run(&stack.sql, LOOSEN).await;
    // A trigger sets this column, after hotshelf's own.
    run(
        &stack.sql,
        "CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS \
        $$BEGIN NEW.update_time := 'infinity'; RETURN NEW; END$$",
    )
    .await;
    let (mut ids, mut expected) = (Vec::new(), Vec::new());
    for (column, breaks) in BROKEN {
        let (good, bad) =
            (stack.insert_unrelayed("good").await, stack.insert_unrelayed("bad").await);
        break_one(&stack.sql, bad, breaks).await;
        ids.extend([good, bad]);
        expected.push((bad, column));
    }
    run(
        &stack.sql,
        "CREATE TRIGGER last BEFORE INSERT ON products FOR EACH ROW EXECUTE FUNCTION never()",
    )
    .await;
    let late = stack.insert_unrelayed("bad").await;
    ids.push(late);
    expected.push((late, "update_time"));
    let node = Node::start(&stack.args()).await;
    let request = BatchGetProductsRequest { ids: ids.clone(), ..Default::default() };
    let batch = node.client.clone().batch_get_products(request).await.unwrap().into_inner();
    assert_eq!(batch.products.len(), BROKEN.len());
    assert!(batch.products.iter().all(|product| product.name == "good"));
    assert_eq!(batch.unreadable_ids, expected.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    for (id, column) in expected {
        assert_unreadable(&node.get(id).await.unwrap_err(), column);
    }
}

fn patch(id: i64, paths: &[&str]) -> UpdateProductRequest {
    let price = Some(Money { currency_code: "EUR".to_owned(), units: 7, nanos: 0 });
    let (name, description) = ("repaired".to_owned(), "repaired".to_owned());
    UpdateProductRequest {
        product: Some(Product { id, name, price, description, ..Product::default() }),
        update_mask: Some(FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        }),
        expected_version: None,
    }
}

async fn repaired(stack: Stack) {
    run(&stack.sql, LOOSEN).await;
    let node = Node::start(&stack.args()).await;
    let mut client = node.client.clone();
    for (column, breaks) in BROKEN {
        let id = stack.insert_unrelayed("bad").await;
        break_one(&stack.sql, id, breaks).await;
        let version = stack.version(id).await;
        let (repairs, other) = match column {
            "create_time" => (None, "name"),
            _ => (Some("price"), "name"),
        };
        let refused = client.update_product(patch(id, &[other])).await.unwrap_err();
        assert_unreadable(&refused, column);
        assert_eq!(stack.version(id).await, version, "nothing was changed: {breaks}");
        if let Some(repairs) = repairs {
            let repaired =
                client.update_product(patch(id, &[repairs])).await.expect(breaks).into_inner();
            assert_eq!(node.product(id).await, repaired);
        }
        let delete = hotshelf::proto::DeleteProductRequest { id, expected_version: None };
        client.delete_product(delete).await.expect(breaks);
    }
}

async fn database_in(stack: &Stack, encoding: &str) -> (String, PgPool) {
    let name = format!("{}_{}", stack.namespace, encoding.to_lowercase());
    run(&stack.sql, &format!("CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")).await;
    let url = stack.database_url.replace(&stack.namespace, &name);
    let sql = connect(&url, 1);
    run(&sql, devstack::sample::TABLE).await;
    attach(&url, "products").await.unwrap();
    (url, sql)
}

async fn node_on(stack: &Stack, url: &str) -> Node {
    let mut args = stack.args();
    args.database.database_url = url.to_owned();
    Node::start(&args).await
}

async fn sql_ascii(stack: Stack) {
    let (url, sql) = database_in(&stack, "SQL_ASCII").await;
    run(&sql, "SET client_encoding = SQL_ASCII").await;
    run(&sql, "INSERT INTO products (id, name, price) VALUES (1, 'lamp', 1), (3, 'é', 1)").await;
    run(&sql, "INSERT INTO products (id, name, price) VALUES (2, E'bad \\xE9', 1)").await;
    let node = node_on(&stack, &url).await;
    let request = BatchGetProductsRequest { ids: vec![1, 2, 3], ..Default::default() };
    let batch = node.client.clone().batch_get_products(request).await.unwrap().into_inner();
    let names: Vec<_> = batch.products.iter().map(|product| &*product.name).collect();
    assert_eq!((names, batch.unreadable_ids), (vec!["lamp", "é"], vec![2]));
    assert_unreadable(&node.get(2).await.unwrap_err(), "name");
    let mut client = node.client.clone();
    let refused = client.update_product(patch(2, &["price"])).await.unwrap_err();
    assert_eq!(refused.get_error_details().error_info().unwrap().reason, "PRODUCT_UNREADABLE");
    client.update_product(patch(2, &["name"])).await.unwrap();
    assert_eq!(node.product(2).await.name, "repaired");
}

async fn one_byte(stack: Stack) {
    let (url, sql) = database_in(&stack, "WIN1252").await;
    run(&sql, "INSERT INTO products (id, name, price) VALUES (1, 'café', 1)").await;
    // A byte without a character in this encoding: the conversion raises an error.
    run(&sql, "SET client_encoding = WIN1252").await;
    run(&sql, "INSERT INTO products (id, name, price) SELECT n, 'p' || CASE n WHEN 5 THEN E'\\x81' ELSE '' END, 1 \
               FROM generate_series(2, 9) n").await;
    let node = node_on(&stack, &url).await;
    let request = BatchGetProductsRequest { ids: (1..=9).collect(), ..Default::default() };
    let batch = node.client.clone().batch_get_products(request).await.unwrap().into_inner();
    assert_eq!(batch.products[0].name, "café");
    assert_eq!((batch.products.len(), batch.unreadable_ids), (8, vec![5]));
    let mut update = patch(1, &["name"]);
    update.product.as_mut().unwrap().name = "商品".to_owned();
    let refused = node.client.clone().update_product(update).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
}

async fn bounds(stack: Stack) {
    run(&stack.sql, LOOSEN).await;
    let node = Node::start(&stack.args()).await;
    let cases = [
        ("price = 999999999999999999.99", 999_999_999_999_999_999, 990_000_000),
        ("price = 0.123456789", 0, 123_456_789),
        ("price = -1.5", -1, -500_000_000),
        ("price = 9.9950", 9, 995_000_000),
        ("create_time = '0001-01-01 00:00:00+00', name = ''", 9, 990_000_000),
        ("create_time = '9999-12-31 23:59:59.999999+00'", 9, 990_000_000),
    ];
    for (change, units, nanos) in cases {
        let id = stack.insert_unrelayed("lamp").await;
        break_one(&stack.sql, id, change).await;
        let price = node.product(id).await.price.unwrap();
        assert_eq!((price.units, price.nanos), (units, nanos), "{change}");
        let request = crate::statements::renamed(id, "renamed");
        let renamed = node.client.clone().update_product(request).await.expect(change).into_inner();
        assert_eq!(renamed.price, Some(price), "{change}");
    }
}

/// A trigger creates the product after the snapshot of the first UPDATE, which therefore finds no row.
async fn created_meanwhile(stack: Stack) {
    run(
        &stack.sql,
        "CREATE FUNCTION create_meanwhile() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF pg_trigger_depth() > 1 THEN RETURN NULL; END IF; \
         INSERT INTO public.products (id, name, price, currency) VALUES (900, 'old', 1, 'USD') ON CONFLICT DO NOTHING; \
         RETURN NULL; END $$",
    )
    .await;
    run(
        &stack.sql,
        "CREATE TRIGGER create_meanwhile BEFORE UPDATE ON products FOR EACH STATEMENT \
         EXECUTE FUNCTION create_meanwhile()",
    )
    .await;
    let node = stack.node().await;
    let request = UpdateProductRequest {
        product: Some(Product { id: 900, name: "new".to_owned(), ..Product::default() }),
        update_mask: Some(FieldMask { paths: vec!["name".to_owned()] }),
        ..UpdateProductRequest::default()
    };
    let updated = node.client.clone().update_product(request).await.unwrap().into_inner();
    assert_eq!(updated.name, "new");
}
