//! Bad input: each case is refused with its code, its details and the path of its field, and the next call works.

use hotshelf::proto::get_product_request::Freshness;
use hotshelf::proto::{
    BatchGetProductsRequest, CreateProductRequest, DeleteProductRequest, GetProductRequest, Money,
    Product, StreamHotKeysRequest, UpdateProductRequest,
};
use prost_types::{Duration, FieldMask};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::{Node, Stack, Suite};

pub fn register(suite: &mut Suite<'_>) {
    suite.single("errors::a_bad_field_of_a_read_is_refused_by_its_path", bad_reads);
    suite.single("errors::a_bad_field_of_a_new_product_is_refused_by_its_path", bad_products);
    suite.single("errors::a_bad_update_is_refused_by_the_path_of_its_field", bad_updates);
    suite.single("errors::a_bad_stream_of_hot_keys_is_refused_by_its_path", bad_streams);
    suite.both("errors::a_write_that_expects_another_version_is_aborted", mismatches);
    suite.both("errors::a_write_to_a_missing_product_is_not_found", missing);
}

enum Call {
    Get(GetProductRequest),
    Batch(BatchGetProductsRequest),
    Create(CreateProductRequest),
    Update(UpdateProductRequest),
    Delete(DeleteProductRequest),
    Stream(StreamHotKeysRequest),
}
use Call::{Batch, Create, Delete, Get, Stream, Update};

impl Call {
    async fn send(self, node: &Node) -> Result<(), Status> {
        let mut client = node.client.clone();
        match self {
            Get(request) => client.get_product(request).await.map(drop),
            Batch(request) => client.batch_get_products(request).await.map(drop),
            Create(request) => client.create_product(request).await.map(drop),
            Update(request) => client.update_product(request).await.map(drop),
            Delete(request) => client.delete_product(request).await.map(drop),
            Stream(request) => client.stream_hot_keys(request).await.map(drop),
        }
    }
}

fn seconds(seconds: i64, nanos: i32) -> Duration {
    Duration { seconds, nanos }
}

/// Sends each call, and reads an unchanged product after each.
async fn all_refused(stack: Stack, cases: impl FnOnce(i64) -> Vec<(&'static str, Call)>) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let product = node.product(id).await;
    for (case, (field, call)) in cases(id).into_iter().enumerate() {
        let what = format!("case {case}, {field}");
        let error = call.send(&node).await.expect_err(&what);
        assert_eq!(error.code(), Code::InvalidArgument, "{what}: {error}");
        let details = error.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((&*info.reason, &*info.domain), ("INVALID_FIELD", "hotshelf"), "{what}");
        let violations = &details.bad_request().unwrap().field_violations;
        let fields: Vec<&str> = violations.iter().map(|violation| &*violation.field).collect();
        assert_eq!(fields, [field], "{what}: {error}");
        assert!(!violations[0].description.is_empty(), "{what}");
        assert_eq!(node.product(id).await, product, "the next call after {what}");
    }
    let products: i64 =
        sqlx::query_scalar("SELECT count(*) FROM products").fetch_one(&stack.sql).await.unwrap();
    assert_eq!(products, 1, "nothing was created or deleted");
}

async fn bad_reads(stack: Stack) {
    let get = |id, freshness| Get(GetProductRequest { id, freshness });
    let batch = |ids: Vec<i64>| Batch(BatchGetProductsRequest { ids, ..Default::default() });
    all_refused(stack, |id| {
        let stale = |max_staleness| {
            Batch(BatchGetProductsRequest {
                ids: vec![id],
                max_staleness: Some(max_staleness),
                ..Default::default()
            })
        };
        let too_old = |duration| get(id, Some(Freshness::MaxStaleness(duration)));
        vec![
            ("id", get(0, None)),
            ("id", get(-1, None)),
            ("id", get(i64::MIN, None)),
            ("min_version", get(id, Some(Freshness::MinVersion(0)))),
            ("min_version", get(id, Some(Freshness::MinVersion(-7)))),
            ("max_staleness", too_old(seconds(-1, 0))),
            ("max_staleness", too_old(seconds(0, -1))),
            ("max_staleness", stale(seconds(-1, 0))),
            ("ids", batch(vec![])),
            ("ids", batch((1..=1_001).collect())),
            ("ids", batch(vec![id; 1_001])),
            ("ids[2]", batch(vec![id, id, 0])),
            ("ids[0]", batch(vec![-5, id])),
            ("id", Delete(DeleteProductRequest { id: 0, expected_version: None })),
            ("id", Delete(DeleteProductRequest { id: -3, expected_version: None })),
            ("expected_version", Delete(DeleteProductRequest { id, expected_version: Some(0) })),
            ("expected_version", Delete(DeleteProductRequest { id, expected_version: Some(-1) })),
        ]
    })
    .await;
}

fn money(currency_code: &str, units: i64, nanos: i32) -> Option<Money> {
    Some(Money { currency_code: currency_code.to_owned(), units, nanos })
}

fn shelf() -> Product {
    Product { name: "oak shelf".to_owned(), price: money("USD", 3, 0), ..Product::default() }
}

/// Products with one invalid field each, and the path of that field.
fn bad_fields() -> Vec<(&'static str, Product)> {
    let priced = |price| Product { price, ..shelf() };
    let named = |name: &str| Product { name: name.to_owned(), ..shelf() };
    let described = |description: String| Product { description, ..shelf() };
    vec![
        ("product.name", named("")),
        ("product.name", named(&"é".repeat(256))),
        ("product.name", named("oak\0shelf")),
        ("product.description", described("x".repeat(64 * 1024 + 1))),
        ("product.description", described("a\0b".to_owned())),
        ("product.price", priced(None)),
        ("product.price", priced(money("USD", -1, 0))),
        ("product.price", priced(money("USD", 0, -10_000_000))),
        ("product.price", priced(money("USD", 1, -500_000_000))),
        ("product.price", priced(money("USD", -1, 500_000_000))),
        ("product.price.nanos", priced(money("USD", 1, 999_000_000))),
        ("product.price.nanos", priced(money("USD", 1, 1))),
        ("product.price.nanos", priced(money("USD", 1, 1_000_000_000))),
        ("product.price.units", priced(money("USD", 100_000_000, 0))),
        ("product.price.units", priced(money("USD", i64::MAX, 990_000_000))),
        ("product.price.currency_code", priced(money("", 1, 0))),
        ("product.price.currency_code", priced(money("usd", 1, 0))),
        ("product.price.currency_code", priced(money("ZZZ", 1, 0))),
        ("product.price.currency_code", priced(money(&"USD".repeat(100), 1, 0))),
    ]
}

async fn bad_products(stack: Stack) {
    let create = |product| Create(CreateProductRequest { product });
    let mut cases: Vec<(&str, Call)> =
        bad_fields().into_iter().map(|(field, product)| (field, create(Some(product)))).collect();
    cases.push(("product", create(None)));
    cases.push(("product.id", create(Some(Product { id: 7, ..shelf() }))));
    all_refused(stack, |_| cases).await;
}

async fn bad_updates(stack: Stack) {
    let update = |product, paths: &[&str]| {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let update_mask = Some(FieldMask { paths });
        Update(UpdateProductRequest { product, update_mask, expected_version: None })
    };
    all_refused(stack, |id| {
        let shelf = Product { id, ..shelf() };
        let of = |paths: &[&str]| update(Some(shelf.clone()), paths);
        let expecting = |version| {
            let product = Some(shelf.clone());
            Update(UpdateProductRequest {
                product,
                update_mask: None,
                expected_version: Some(version),
            })
        };
        let mut cases: Vec<(&str, Call)> = bad_fields()
            .into_iter()
            .map(|(field, product)| (field, update(Some(Product { id, ..product }), &["*"])))
            .collect();
        let empty = Product { id, ..Product::default() };
        cases.extend([
            ("product", update(None, &["name"])),
            ("product.id", update(Some(Product { id: 0, ..shelf.clone() }), &["name"])),
            ("product.id", update(Some(Product { id: -1, ..shelf.clone() }), &["name"])),
            ("product.name", update(Some(empty.clone()), &["name"])),
            ("product.price", update(Some(empty.clone()), &["price"])),
            ("update_mask", update(Some(empty), &[])),
            ("update_mask", of(&["weight"])),
            ("update_mask", of(&["name", ""])),
            ("update_mask", of(&["price.units"])),
            ("update_mask", of(&["*", "name"])),
            ("update_mask", of(&["name", "*"])),
            ("update_mask", of(&["version", "update_time"])),
            ("expected_version", expecting(0)),
            ("expected_version", expecting(-1)),
        ]);
        cases
    })
    .await;
}

async fn bad_streams(stack: Stack) {
    let stream = |limit, interval, scope| Stream(StreamHotKeysRequest { limit, interval, scope });
    let every = |seconds| stream(1, Some(seconds), 0);
    all_refused(stack, |_| {
        vec![
            ("limit", stream(-1, None, 0)),
            ("limit", stream(1_001, None, 0)),
            ("interval", every(seconds(0, 0))),
            ("interval", every(seconds(0, 99_000_000))),
            ("interval", every(seconds(3_601, 0))),
            ("interval", every(seconds(-1, 0))),
            ("scope", stream(1, None, 99)),
        ]
    })
    .await;
}

fn rename(id: i64, expected_version: Option<i64>) -> Call {
    let product = Some(Product { id, name: "oak shelf".to_owned(), ..Product::default() });
    Update(UpdateProductRequest { product, update_mask: None, expected_version })
}

async fn mismatches(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let product = node.product(id).await;
    let wrong = product.version + 1;
    let delete = Delete(DeleteProductRequest { id, expected_version: Some(wrong) });
    for call in [rename(id, Some(wrong)), delete] {
        let error = call.send(&node).await.unwrap_err();
        assert_eq!(error.code(), Code::Aborted);
        let details = error.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((&*info.reason, &*info.domain), ("VERSION_MISMATCH", "hotshelf"));
        assert_eq!(info.metadata["current_version"], product.version.to_string());
        assert_eq!(info.metadata["expected_version"], wrong.to_string());
        assert_eq!(node.product(id).await, product, "nothing was changed");
    }
    rename(id, Some(product.version)).send(&node).await.unwrap();
    let renamed = node.product(id).await;
    assert!(renamed.version > product.version);
    let delete = DeleteProductRequest { id, expected_version: Some(renamed.version) };
    Delete(delete).send(&node).await.unwrap();
    assert_eq!(node.get(id).await.unwrap_err().code(), Code::NotFound);
}

async fn missing(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let absent = id + 1_000;
    let delete = |expected_version| Delete(DeleteProductRequest { id: absent, expected_version });
    let calls = [rename(absent, None), rename(absent, Some(1)), delete(None), delete(Some(1))];
    for call in calls {
        let error = call.send(&node).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
        let details = error.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((&*info.reason, &*info.domain), ("PRODUCT_NOT_FOUND", "hotshelf"));
        assert_eq!(node.product(id).await.id, id, "the next call");
    }
}
