//! Entity tags, preconditions and freshness.

use hotshelf::config::ServeArgs;
use http::{StatusCode, Version};

use super::{GET, VERSIONS};
use crate::harness::{Http, Stack, Suite, eventually};

pub fn register(suite: &mut Suite<'_>) {
    suite.single("web::a_read_that_changes_nothing_is_304", unchanged);
    suite.single("web::if_match_is_the_expected_version", if_match);
    suite.single("web::freshness_is_asked_for_by_headers_and_query", freshness);
    suite.single("web::a_read_that_joins_a_load_is_collapsed", collapsed);
    suite.single("web::shared_caches_store_only_by_setting", shared);
}

async fn unchanged(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        let connect = |encoding| {
            format!(
                "{GET}?connect=v1&encoding={encoding}&message={}",
                match encoding {
                    "json" => format!("%7B%22id%22%3A{id}%7D"),
                    _ => format!("%08%{id:02x}"),
                }
            )
        };
        let paths = [
            format!("/v1/products/{id}"),
            format!("/products/{id}"),
            connect("json"),
            connect("proto"),
        ];
        let mut tags = Vec::new();
        for path in &paths {
            let read = http.get(path).await;
            let tag = read.header("etag").to_owned();
            assert!(tag.starts_with('"') && tag.len() > 4, "strong: {read:?}");
            assert_eq!(read.header("cache-control"), "private, no-cache");
            let status = read.header("cache-status");
            assert!(status.starts_with("hotshelf; ") && status.contains("; ttl="), "{status}");
            for sent in [tag.clone(), format!("\"x\", W/{tag}"), "*".to_owned()] {
                let line = format!("GET {path}");
                let answer = http.send(&line, &[("if-none-match", &sent)], b"").await;
                assert_eq!(answer.status, StatusCode::NOT_MODIFIED, "{sent}");
                assert_eq!((answer.body.len(), answer.header("etag")), (0, &*tag));
                assert_eq!(answer.header("cache-control"), "private, no-cache");
            }
            let other = http.send(&format!("GET {path}"), &[("if-none-match", "\"1\"")], b"").await;
            assert_eq!(other.status, StatusCode::OK);
            let head = http.send(&format!("HEAD {path}"), &[], b"").await;
            if path.starts_with("/v1") || path.starts_with("/products") {
                let length = read.body.len().to_string();
                assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
                assert_eq!((head.header("content-length"), head.header("etag")), (&*length, &*tag));
            }
            tags.push(tag);
        }
        assert_ne!(tags[0], tags[1], "representations differ");
        assert_ne!(tags[2], tags[3], "representations differ");
        let update = "UPDATE products SET price = price + 1 WHERE id = $1";
        sqlx::query(update).bind(id).execute(&stack.sql).await.unwrap();
        let sent = [("if-none-match", tags[0].as_str())];
        eventually("the change is a new tag", async || {
            let mut http = Http::connect(version, node.grpc_addr.port()).await;
            http.send(&format!("GET {}", paths[0]), &sent, b"").await.status == StatusCode::OK
        })
        .await;
    }
}

async fn if_match(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        for path in [format!("/v1/products/{id}"), format!("/products/{id}")] {
            let line = format!("PATCH {path}");
            let json = ("content-type", "application/json");
            let read = http.get(&path).await;
            let tag = read.header("etag").to_owned();
            let body = br#"{"price":7}"#;
            let updated = http.send(&line, &[json, ("if-match", &tag)], body).await;
            assert_eq!(updated.status, StatusCode::OK, "{updated:?}");
            assert_eq!(updated.header("etag"), http.get(&path).await.header("etag"));
            for old in [&*tag, "\"1\"", "\"other\"", "W/\"1\""] {
                let refused = http.send(&line, &[json, ("if-match", old)], body).await;
                assert_eq!(refused.status, StatusCode::PRECONDITION_FAILED, "{old}: {refused:?}");
                assert_eq!(refused.reason(), "VERSION_MISMATCH");
                let refused = http.send(&format!("DELETE {path}"), &[("if-match", old)], b"").await;
                assert_eq!(refused.status, StatusCode::PRECONDITION_FAILED, "{old}");
            }
            let any = http.send(&line, &[json, ("if-match", "*")], body).await;
            assert_eq!(any.status, StatusCode::OK);
            let bare = updated.header("etag").split('-').next().unwrap().to_owned() + "\"";
            let refused = http.send(&line, &[json, ("if-match", &bare)], body).await;
            assert_eq!(refused.status, StatusCode::PRECONDITION_FAILED, "changed since");
            let wrong = http.send(&line, &[json, ("if-none-match", "*")], body).await;
            assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
            let query = format!("{line}?expectedVersion=1");
            let refused = http.send(&query, &[json], body).await;
            assert_eq!(refused.status, StatusCode::CONFLICT, "no precondition of HTTP");
            let update = "POST /hotshelf.v1.ProductService/UpdateProduct";
            let message = format!("{{\"product\":{{\"id\":{id},\"name\":\"x\"}}}}");
            let headers = [json, ("if-match", "\"1\"")];
            let refused = http.send(update, &headers, message.as_bytes()).await;
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "it is not ignored");
            let twice = http.send(&query, &[json, ("if-match", "\"1\"")], body).await;
            assert_eq!(twice.status, StatusCode::BAD_REQUEST);
        }
    }
}

async fn freshness(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        let line = format!("GET /v1/products/{id}");
        http.send(&line, &[], b"").await;
        let hot = http.send(&line, &[("min-version", "1")], b"").await;
        assert!(hot.header("cache-status").contains("detail=hot"), "{hot:?}");
        for headers in [("max-staleness", "0"), ("max-staleness", "0s")] {
            let read = http.send(&line, &[headers], b"").await;
            assert!(read.header("cache-status").contains("detail=postgres"), "{read:?}");
        }
        for query in ["latest=true", "latest", "maxStaleness=0s", "max_staleness=0"] {
            let read = http.send(&format!("{line}?{query}"), &[], b"").await;
            assert!(read.header("cache-status").contains("detail=postgres"), "{query}: {read:?}");
        }
        let connect = format!("GET {GET}?encoding=json&message=%7B%22id%22%3A{id}%7D");
        let read = http.send(&connect, &[("max-staleness", "0")], b"").await;
        assert!(read.header("cache-status").contains("detail=postgres"), "{read:?}");
        let batch = format!("GET /v1/products:batchGet?ids={id}");
        let refused = http.send(&batch, &[("min-version", "1")], b"").await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        let never = http.send(&line, &[("min-version", "999999999")], b"").await;
        assert_eq!(never.reason(), "VERSION_NOT_REACHED");
        for (headers, query) in [
            (vec![("min-version", "1"), ("max-staleness", "1")], ""),
            (vec![("min-version", "1")], "?latest=true"),
            (vec![("min-version", "0")], ""),
            (vec![("max-staleness", "-1")], ""),
            (vec![("min-version", "1"), ("min-version", "99999999")], ""),
            (vec![], "?minVersion=1&latest=true"),
        ] {
            let refused = http.send(&format!("{line}{query}"), &headers, b"").await;
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{headers:?} {query}");
        }
    }
}

async fn collapsed(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let lock = stack.lock_products().await;
    let reads = VERSIONS.map(|version| {
        let port = node.grpc_addr.port();
        tokio::spawn(async move {
            let mut http = Http::connect(version, port).await;
            http.get(&format!("/products/{id}")).await
        })
    });
    let joined = async || node.metric("hotshelf_singleflight_joined_total").await;
    eventually("one joins the load of the other", async || joined().await == 1.0).await;
    lock.rollback().await.unwrap();
    let mut statuses = Vec::new();
    for read in reads {
        statuses.push(read.await.unwrap().header("cache-status").contains("; collapsed"));
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [false, true]);
    assert_eq!(node.metric("hotshelf_web_requests_total{protocol=\"json\"}").await, 2.0);
}

async fn shared(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let change =
        |args: &mut ServeArgs| args.http.http_shared_max_age = std::time::Duration::from_secs(5);
    let node = stack.node_with(change).await;
    let mut http = Http::connect(Version::HTTP_11, node.grpc_addr.port()).await;
    let line = format!("GET /v1/products/{id}");
    let read = http.send(&line, &[], b"").await;
    assert_eq!(read.header("cache-control"), "public, max-age=0, s-maxage=5");
    assert!(read.header("vary").contains("authorization"), "{read:?}");
    for private in [("authorization", "Bearer x"), ("min-version", "1"), ("max-staleness", "1")] {
        let read = http.send(&line, &[private], b"").await;
        assert_eq!(read.header("cache-control"), "private, no-cache", "{private:?}");
    }
}
