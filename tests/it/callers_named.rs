//! Who a caller is: by its token, or by what a proxy in front says, it is one caller on any connection.

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
    suite.single("callers::whom_a_proxy_names_is_one_caller_on_any_connection", proxied);
    suite.single("callers::whoever_shows_a_token_is_one_caller_on_any_connection", shown);
    suite.single("callers::a_name_that_nobody_was_asked_for_is_not_believed", not_believed);
}

fn named(list: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("x-forwarded-for", list.parse().unwrap());
    headers
}

async fn proxied(stack: Stack) {
    let change =
        |args: &mut ServeArgs| args.identity.caller_metadata = "x-forwarded-for".to_owned();
    let node = with_ten_places(&stack, change).await;
    // What is before the last comma the client itself may have sent.
    let greedy = |n| named(&format!("{n}, greedy"));
    assert!(leaves_a_place(&stack, &node, greedy, named("polite")).await);
    let most = format!("{} greedy\n", CALLS - PLACES + 1);
    assert_eq!(node.admin("/callers").await.1, most);
}

async fn shown(stack: Stack) {
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

async fn not_believed(stack: Stack) {
    let node = with_ten_places(&stack, |_| {}).await;
    let left = leaves_a_place(&stack, &node, |_| named("greedy"), named("polite")).await;
    assert!(!left, "the connection is the caller");
}

/// One caller wants more loads than there are places for, on two connections, and then another wants one, on the second of these.
/// Whether it gets a place of the first.
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
    eventually("one runs, ten wait, the rest is told", async || ended() == CALLS - PLACES).await;
    let neighbour = read(CALLS, cold, polite);
    eventually("one of them is told", async || {
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
