//! Identity of callers: a caller with a token, or named by a trusted proxy, is one caller on all its connections.

use std::sync::Arc;

use hotshelf::config::ServeArgs;
use http::HeaderMap;
use prost::Message;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::auth::tokens::{Signer, claims};
use crate::auth::{Jwks, bearer};
use crate::callers::with_ten_places;
use crate::harness::{HANG, Node, Raw, Stack, Suite, eventually, framed, get};

const GET: &str = "/hotshelf.v1.ProductService/GetProduct";
const CALLS: i64 = 20;
/// One load runs, and ten wait.
const PLACES: i64 = 11;

pub fn register(suite: &mut Suite<'_>) {
    suite.single(
        "callers::a_caller_named_by_a_proxy_is_one_caller_on_any_connection",
        named_by_proxy,
    );
    suite.single("callers::a_caller_with_a_token_is_one_caller_on_any_connection", named_by_token);
    suite.single("callers::a_forwarded_name_is_ignored_unless_it_is_configured", ignored);
}

fn named(list: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("x-forwarded-for", list.parse().unwrap());
    headers
}

async fn named_by_proxy(stack: Stack) {
    let change =
        |args: &mut ServeArgs| args.identity.caller_metadata = "x-forwarded-for".to_owned();
    let node = with_ten_places(&stack, change).await;
    // A client can set the names before the last comma itself.
    let greedy = |n| named(&format!("{n}, greedy"));
    assert!(leaves_a_place(&stack, &node, greedy, named("polite")).await);
    let most = format!("{} greedy\n", CALLS - PLACES + 1);
    assert_eq!(node.admin("/callers").await.1, most);
}

async fn named_by_token(stack: Stack) {
    let signer = Signer::es256("ours");
    let jwks = Jwks::of(&[&signer]);
    let node = with_ten_places(&stack, |args| jwks.configure(args)).await;
    let of = |subject: &str| {
        let mut claims = claims("products.read");
        claims["sub"] = subject.into();
        bearer(&signer.token(&claims))
    };
    assert!(leaves_a_place(&stack, &node, |_| of("greedy"), of("polite")).await);
    let most = format!("{} greedy\n", CALLS - PLACES + 1);
    assert_eq!(node.admin("/callers").await.1, most);
}

async fn ignored(stack: Stack) {
    let node = with_ten_places(&stack, |_| {}).await;
    let left = leaves_a_place(&stack, &node, |_| named("greedy"), named("polite")).await;
    assert!(!left, "the connection is the caller");
}

/// One caller starts more loads than there are places, on two connections; then another caller starts one, on the
/// second connection. Returns whether that load evicts one of the first caller's.
async fn leaves_a_place(
    stack: &Stack,
    node: &Node,
    greedy: impl Fn(i64) -> HeaderMap,
    polite: HeaderMap,
) -> bool {
    let cold = stack.insert("cold").await;
    let lock = stack.lock_products().await;
    let port = node.app.grpc_addr.port();
    let connections = [Raw::connect(port).await, Raw::connect(port).await].map(Arc::new);
    let read = |n: i64, id, headers| {
        let (raw, body) = (connections[usize::from(n % 2 == 0)].clone(), get(id).encode_to_vec());
        tokio::spawn(async move { raw.call_with(GET, headers, framed(&body)).await.unwrap() })
    };
    let calls: Vec<_> = (0..CALLS).map(|n| read(n, 1_000_000 + n, greedy(n))).collect();
    let ended = || calls.iter().filter(|call| call.is_finished()).count() as i64;
    eventually("one runs, ten wait, the rest is refused", async || ended() == CALLS - PLACES).await;
    let neighbour = read(CALLS, cold, polite);
    eventually("one more is refused", async || {
        ended() == CALLS - PLACES + 1 || neighbour.is_finished()
    })
    .await;
    let left = !neighbour.is_finished();
    lock.rollback().await.unwrap();
    let answer = tokio::time::timeout(HANG, neighbour).await.unwrap().unwrap();
    assert_eq!(answer.code() == Code::Ok, left, "{answer}");
    for call in calls {
        let status = tokio::time::timeout(HANG, call).await.unwrap().unwrap();
        let is_refused = status.code() == Code::ResourceExhausted && reason(&status);
        assert!(status.code() == Code::NotFound || is_refused, "{status}");
    }
    left
}

fn reason(status: &Status) -> bool {
    let info = status.get_details_error_info();
    info.is_some_and(|info| info.reason == "DATABASE_BUDGET_EXHAUSTED")
}
