//! Tokens with signatures that are not valid.

use futures_util::future::join_all;
use http::HeaderMap;
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt;

use super::tokens::{Signer, claims};
use super::{Jwks, READ, bearer, node, read, reason, refused};
use crate::harness::{Raw, Stack, eventually};

/// Calls that are refused before their requests are read do not end the connection, on which a proxy may have those of others.
pub async fn connection(stack: Stack) {
    const REFUSED: usize = 2_000;
    let id = stack.insert("walnut desk lamp").await;
    let ours = Signer::es256("ours");
    let jwks = Jwks::of(&[&ours]);
    let node = node(&stack, &jwks).await;
    let raw = Raw::connect(node.app.grpc_addr.port()).await;
    let calls = (0..REFUSED).map(|_| read(&raw, id, HeaderMap::new()));
    for status in join_all(calls).await {
        assert_eq!((status.code(), &*reason(&status)), (Code::Unauthenticated, "TOKEN_MISSING"));
    }
    let good = bearer(&ours.token(&claims(READ)));
    assert_eq!(read(&raw, id, good).await.code(), Code::Ok);
}

/// One signature takes as long to verify as many reads.
pub async fn flood(stack: Stack) {
    const FORGED: usize = 1_000;
    let id = stack.insert("walnut desk lamp").await;
    let (ours, other) = (Signer::es256("ours"), Signer::es256("theirs"));
    let jwks = Jwks::of(&[&ours]);
    let node = node(&stack, &jwks).await;
    let raw = Raw::connect(node.app.grpc_addr.port()).await;
    let token = |signer: &Signer, subject: usize| {
        let mut claims = claims(READ);
        claims["sub"] = json!(format!("caller {subject}"));
        bearer(&signer.token_of("ours", &claims))
    };
    let good = token(&ours, 0);
    assert_eq!(read(&raw, id, good.clone()).await.code(), Code::Ok);
    // The same forged token again and again, as from a client with a wrong setting, is told the reason each time.
    let same = token(&other, 0);
    for _ in 0..FORGED {
        let status = read(&raw, id, same.clone()).await;
        assert_eq!((status.code(), &*reason(&status)), (Code::Unauthenticated, "TOKEN_INVALID"));
    }
    // Signed before, so that they are sent faster than they may be verified.
    let forged: Vec<HeaderMap> = (0..FORGED).map(|n| token(&other, n)).collect();
    let calls = forged.into_iter().map(|headers| read(&raw, id, headers));
    let mut verified = 0;
    for status in join_all(calls).await {
        match status.code() {
            Code::Unauthenticated => verified += 1,
            Code::ResourceExhausted => {
                assert_eq!(reason(&status), "TOO_MANY_INVALID_TOKENS");
                assert!(status.get_details_retry_info().is_some());
            }
            _ => panic!("{status:?}"),
        }
    }
    assert!((64..FORGED / 2).contains(&verified), "{verified} were verified");
    assert_eq!(refused(&node, "too_many_invalid").await, (FORGED - verified) as f64);
    assert_eq!(read(&raw, id, good).await.code(), Code::Ok, "a known token is still accepted");
    let other_connection = Raw::connect(node.app.grpc_addr.port()).await;
    let status = read(&other_connection, id, token(&ours, 1)).await;
    assert_eq!(status.code(), Code::Ok, "other connections are not affected");
    eventually("and later, a new token is accepted here, too", async || {
        read(&raw, id, token(&ours, 2)).await.code() == Code::Ok
    })
    .await;
}
