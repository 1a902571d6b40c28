//! Switches: parts of the API that settings turn off.

use hotshelf::proto::{
    AdminServiceClient, CreateProductRequest, DeleteProductRequest, ExplainProductRequest, Money,
    Product, UpdateProductRequest,
};
use hotshelf::rpc::ServedOn;
use http::HeaderMap;
use prost_types::FieldMask;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::edge::listed;
use crate::harness::{HANG, Node, Raw, Stack, Suite, channel, framed, get};
use crate::newest_wins::rename;

const ADMIN_SERVICE: &str = "hotshelf.v1.AdminService";
const REFLECTION: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

pub fn register(suite: &mut Suite<'_>) {
    suite.single("switches::a_read_only_instance_refuses_writes_and_reads_on", read_only);
    suite.single("switches::admin_service_and_reflection_can_be_left_out", left_out);
    suite.single("switches::admin_service_can_be_moved_to_the_admin_port", admin_moved);
    suite.single("switches::reflection_can_be_moved_to_the_admin_port", reflection_moved);
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
    let id = stack.insert("walnut desk lamp").await;
    let request = ExplainProductRequest { id };
    let node = stack
        .node_with(|args| {
            args.switches.admin_service = ServedOn::Nowhere;
            args.switches.reflection = ServedOn::Nowhere;
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
    let node = stack.node_with(|args| args.switches.admin_service = ServedOn::Nowhere).await;
    let names = listed(node.grpc_addr.port()).await;
    assert!(names.iter().any(|name| name == "hotshelf.v1.ProductService"), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("AdminService")), "{names:?}");
}

async fn explained(port: u16, id: i64) -> Result<i64, Status> {
    let request = ExplainProductRequest { id };
    let answer = AdminServiceClient::new(channel(port).await).explain_product(request).await?;
    Ok(answer.into_inner().id)
}

/// What a bare call is answered with.
async fn code(port: u16, path: &str, body: &[u8]) -> Code {
    let raw = Raw::connect(port).await;
    raw.call_with(path, HeaderMap::new(), framed(body)).await.unwrap().code()
}

async fn assert_http_works(node: &Node) {
    assert_eq!(node.admin("/livez").await, (200, "alive\n".to_owned()));
    assert_eq!(node.admin("/metrics").await.0, 200);
}

async fn admin_moved(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node_with(|args| args.switches.admin_service = ServedOn::AdminPort).await;
    let (grpc, admin) = (node.grpc_addr.port(), node.admin_addr.port());
    assert_eq!(explained(admin, id).await.unwrap(), id);
    assert_eq!(explained(admin, 0).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(explained(grpc, id).await.unwrap_err().code(), Code::Unimplemented);
    assert_http_works(&node).await;
    assert!(!listed(grpc).await.iter().any(|name| name == ADMIN_SERVICE));
    assert!(listed(admin).await.iter().any(|name| name == ADMIN_SERVICE), "so grpcurl can call it");
    let get = prost::Message::encode_to_vec(&get(id));
    for method in ["GetProduct", "BatchGetProducts", "UpdateProduct", "StreamHotKeys"] {
        let path = format!("/hotshelf.v1.ProductService/{method}");
        assert_eq!(code(admin, &path, &get).await, Code::Unimplemented, "{method}");
    }
    // A preface that arrives in parts.
    let mut slow = tokio::net::TcpStream::connect(("127.0.0.1", admin)).await.unwrap();
    for part in [&b"PR"[..], b"I * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0, 0, 0, 4, 0, 0, 0, 0, 0]] {
        tokio::io::AsyncWriteExt::write_all(&mut slow, part).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let mut settings = [0; 9];
    let read = tokio::io::AsyncReadExt::read_exact(&mut slow, &mut settings);
    tokio::time::timeout(HANG, read).await.unwrap().unwrap();
    assert_eq!(settings[3], 4, "the server's SETTINGS");
    assert!(node.app.stop().await, "its connections do not delay the end");
}

async fn reflection_moved(stack: Stack) {
    let node = stack.node_with(|args| args.switches.reflection = ServedOn::AdminPort).await;
    let (grpc, admin) = (node.grpc_addr.port(), node.admin_addr.port());
    for path in REFLECTION {
        assert_eq!(code(grpc, path, &[]).await, Code::Unimplemented, "{path}");
    }
    let names = listed(admin).await;
    for name in ["hotshelf.v1.ProductService", ADMIN_SERVICE] {
        assert!(names.iter().any(|listed| listed == name), "{name} in {names:?}");
    }
    assert_http_works(&node).await;
    let elsewhere = code(admin, "/hotshelf.v1.AdminService/ExplainProduct", &[]).await;
    assert_eq!(elsewhere, Code::Unimplemented);
}
