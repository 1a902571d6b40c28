//! Switches: parts of the API that settings turn off.

use hotshelf::proto::{
    AdminServiceClient, CreateProductRequest, DeleteProductRequest, ExplainProductRequest, Money,
    Product, UpdateProductRequest,
};
use http::HeaderMap;
use prost_types::FieldMask;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::{Raw, Stack, Suite, framed};
use crate::newest_wins::rename;

pub fn register(suite: &mut Suite<'_>) {
    suite.single("switches::a_read_only_instance_refuses_writes_and_reads_on", read_only);
    suite.single("switches::admin_service_and_reflection_can_be_left_out", left_out);
}

fn assert_read_only(refused: &Status) {
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "READ_ONLY");
    assert!(details.retry_info().is_none(), "the same call always fails");
}

async fn read_only(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node_with(|args| args.switches.read_only = true).await;
    let mut client = node.client.clone();
    let update = UpdateProductRequest {
        product: Some(Product { id, name: "oak desk lamp".to_owned(), ..Default::default() }),
        update_mask: Some(FieldMask { paths: vec!["name".to_owned()] }),
        expected_version: None,
    };
    assert_read_only(&client.update_product(update).await.unwrap_err());
    let price = Some(Money { currency_code: "USD".to_owned(), units: 5, nanos: 0 });
    let create = CreateProductRequest {
        product: Some(Product { name: "shelf".to_owned(), price, ..Default::default() }),
    };
    assert_read_only(&client.create_product(create).await.unwrap_err());
    let delete = DeleteProductRequest { id, ..Default::default() };
    assert_read_only(&client.delete_product(delete).await.unwrap_err());
    assert_eq!(node.product(id).await.name, "walnut desk lamp");
    let rows: i64 =
        sqlx::query_scalar("SELECT count(*) FROM products").fetch_one(&stack.sql).await.unwrap();
    assert_eq!(rows, 1);
    // It serves the writes of other instances.
    let writer = stack.node().await;
    rename(&writer, id, "oak desk lamp").await;
    crate::harness::eventually("it serves the change", async || {
        node.product(id).await.name == "oak desk lamp"
    })
    .await;
}

async fn left_out(stack: Stack) {
    const REFLECTION: [&str; 2] = [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ];
    let id = stack.insert("walnut desk lamp").await;
    let request = ExplainProductRequest { id };
    let node = stack
        .node_with(|args| {
            args.switches.admin_service = false;
            args.switches.reflection = false;
        })
        .await;
    let explained = AdminServiceClient::new(node.channel.clone()).explain_product(request).await;
    assert_eq!(explained.unwrap_err().code(), Code::Unimplemented);
    let raw = Raw::connect(node.grpc_addr.port()).await;
    for path in REFLECTION {
        let answer = raw.call_with(path, HeaderMap::new(), framed(&[])).await.unwrap();
        assert_eq!(answer.code(), Code::Unimplemented, "{path}");
    }
    node.product(id).await;
    // Reflection does not list a service that is turned off.
    let node = stack.node_with(|args| args.switches.admin_service = false).await;
    let names = crate::edge::listed(&node).await;
    assert!(names.iter().any(|name| name == "hotshelf.v1.ProductService"), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("AdminService")), "{names:?}");
}
