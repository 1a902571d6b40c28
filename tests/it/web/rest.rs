//! JSON over HTTP.

use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::VERSIONS;
use crate::attach::{database, node_on};
use crate::harness::{Http, Stack, Suite, attach};
use crate::schema::run;

pub fn register(suite: &mut Suite<'_>) {
    suite.single("web::the_plain_calls_work_as_they_are_typed", plain);
    suite.single("web::every_method_is_served_as_json", methods);
    suite.single("web::an_update_changes_the_fields_that_are_there", partial);
    suite.single("web::a_plain_price_keeps_the_currency", currency);
    suite.single("web::attributes_are_read_and_written_as_json", attributes);
    suite.single("web::errors_are_google_rpc_status_with_the_http_code", errors);
    suite.single("web::hot_keys_are_server_sent_events", hot_keys);
    suite.single("web::the_openapi_document_is_served", openapi);
}

async fn plain(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        let read = http.get(&format!("/products/{id}")).await;
        assert_eq!(
            (read.status, read.header("content-type")),
            (StatusCode::OK, "application/json")
        );
        let product = read.json();
        assert_eq!((&product["id"], &product["name"]), (&json!(id), &json!("walnut desk lamp")));
        assert!(product["price"].is_number() && product["currency"] == "USD", "{product}");
        let put = http.json(&format!("PUT /products/{id}"), r#"{"price":99.99}"#).await;
        assert_eq!(put.status, StatusCode::OK, "{put:?}");
        assert!(put.body.windows(14).any(|text| text == br#""price":99.99,"#), "{put:?}");
        assert_eq!(put.json()["name"], "walnut desk lamp");
        assert_eq!(http.get(&format!("/products/{id}")).await.json()["price"], json!(99.99));
        let body = r#"{"name":"oak shelf","price":"12.50","currency":"EUR","description":"wide"}"#;
        let created = http.json("POST /products", body).await;
        assert_eq!(created.status, StatusCode::CREATED, "{created:?}");
        let location = created.header("location").to_owned();
        let read = http.get(&location).await.json();
        assert_eq!((&read["price"], &read["currency"]), (&json!(12.5), &json!("EUR")));
        let deleted = http.send(&format!("DELETE {location}"), &[], b"").await;
        assert_eq!((deleted.status, deleted.body.len()), (StatusCode::NO_CONTENT, 0));
        assert_eq!(http.get(&location).await.status, StatusCode::NOT_FOUND);
    }
}

async fn methods(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        let path = format!("/v1/products/{id}");
        let product = http.get(&path).await.json();
        assert_eq!(product["id"], id.to_string(), "an int64 is a string");
        assert_eq!(product["price"]["currencyCode"], "USD");
        assert!(product["updateTime"].as_str().unwrap().ends_with('Z'));
        let body = r#"{"name":"oak shelf","price":{"currencyCode":"USD","units":3}}"#;
        let created = http.json("POST /v1/products", body).await;
        assert_eq!(created.status, StatusCode::OK, "{created:?}");
        let other = created.json()["id"].as_str().unwrap().to_owned();
        let batch = format!("/v1/products:batchGet?ids={id}&ids={other}&ids=9999999&ids={id}");
        let batch = http.get(&batch).await;
        let ids = |name: &str| -> Vec<Value> { batch.json()[name].as_array().unwrap().clone() };
        let products: Vec<_> = ids("products").iter().map(|one| one["id"].clone()).collect();
        assert_eq!(products, [json!(id.to_string()), json!(other)]);
        assert_eq!(ids("notFoundIds"), [json!("9999999")]);
        let line = format!("PATCH {path}?updateMask=name,description&unused=1");
        assert_eq!(http.json(&line, "{}").await.reason(), "INVALID_FIELD", "unused is unknown");
        let line = format!("PATCH {path}?updateMask=name,description");
        let body = r#"{"name":"lamp","price":{"units":"8"}}"#;
        let updated = http.json(&line, body).await.json();
        assert_eq!(updated["name"], "lamp");
        assert_eq!(updated["price"], product["price"], "not in the mask");
        assert!(updated.get("description").is_none(), "in the mask, and not given: {updated}");
        let deleted = http.send(&format!("DELETE /v1/products/{other}"), &[], b"").await;
        assert_eq!((deleted.status, deleted.json()), (StatusCode::OK, json!({})));
        let gone = http.get(&format!("/v1/products/{other}")).await;
        assert_eq!(
            (gone.status, gone.reason()),
            (StatusCode::NOT_FOUND, "PRODUCT_NOT_FOUND".into())
        );
        http.json(&format!("PATCH {path}"), r#"{"name":"walnut desk lamp"}"#).await;
    }
}

async fn partial(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        for path in [format!("/v1/products/{id}"), format!("/products/{id}")] {
            let line = format!("PATCH {path}");
            let described = http.json(&line, r#"{"description":"brass","id":null}"#).await;
            assert_eq!(described.json()["description"], "brass", "{described:?}");
            let named = http.json(&line, r#"{"name":"lamp"}"#).await.json();
            assert_eq!((&named["name"], &named["description"]), (&json!("lamp"), &json!("brass")));
            let cleared = http.json(&line, r#"{"description":""}"#).await.json();
            assert!(cleared["description"].as_str().unwrap_or_default().is_empty());
            assert_eq!(cleared["name"], "lamp");
            for (body, field) in [
                ("{}", "product"),
                (r#"{"name":""}"#, "product.name"),
                (r#"{"price":null}"#, "product.price"),
                (r#"{"price":-1}"#, "product.price"),
                (r#"{"price":1.234}"#, "product.price"),
                (r#"{"price":1e9}"#, "product.price"),
                (r#"{"id":7777,"name":"x"}"#, "product.id"),
            ] {
                let refused = http.json(&line, body).await;
                assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{body}: {refused:?}");
                assert_eq!(refused.json()["details"][0]["metadata"]["field"], field, "{body}");
            }
            for body in ["", "[]", "null", "{", "{} {}", r#"{"nmae":"x"}"#, r#"{"name":7}"#] {
                let refused = http.json(&line, body).await;
                assert_eq!(refused.reason(), "MALFORMED_REQUEST", "{body}: {refused:?}");
            }
        }
    }
}

async fn currency(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let update = "UPDATE products SET currency = 'JPY' WHERE id = $1";
    sqlx::query(update).bind(id).execute(&stack.sql).await.unwrap();
    let node = stack.node().await;
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        let line = format!("PATCH /v1/products/{id}");
        for price in ["77.5", "\"77.50\"", "77.500"] {
            let updated = http.json(&line, &format!("{{\"price\":{price}}}")).await.json();
            let expected = json!({"currencyCode": "JPY", "units": "77", "nanos": 500_000_000});
            assert_eq!(updated["price"], expected, "{price}: {updated}");
        }
        let plain = format!("PUT /products/{id}");
        let updated = http.json(&plain, r#"{"price":5,"currency":"EUR"}"#).await.json();
        assert_eq!((&updated["price"], &updated["currency"]), (&json!(5.0), &json!("EUR")));
        for body in [r#"{"currency":"USD"}"#, r#"{"price":5,"currency":"usd"}"#] {
            assert_eq!(http.json(&plain, body).await.status, StatusCode::BAD_REQUEST, "{body}");
        }
        let without = http.json("POST /products", r#"{"name":"x","price":1}"#).await;
        let field = without.json()["details"][0]["metadata"]["field"].clone();
        assert_eq!(field, "product.price.currency_code", "the table has a column for it");
        http.json(&plain, r#"{"price":5,"currency":"JPY"}"#).await;
    }
}

async fn attributes(stack: Stack) {
    let table = "CREATE TABLE goods (id bigint PRIMARY KEY, name text, price numeric(10,2), sku text, \
        stock int, tags text[], \"odd,name\" text)";
    let (url, sql) = database(&stack, "goods", table).await;
    run(&sql, "INSERT INTO goods VALUES (1, 'lamp', 5, 'A-1', 3, '{a,b}', 'x')").await;
    attach(&url, "goods").await.unwrap();
    let node = node_on(&stack, &url, "goods").await;
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        for path in ["/v1/products/1", "/products/1"] {
            let read = http.get(path).await.json();
            let expected = json!({"sku": "A-1", "stock": 3, "tags": ["a", "b"], "odd,name": "x"});
            assert_eq!(read["attributes"], expected, "{read}");
            let body = r#"{"attributes":{"stock":4,"odd,name":null}}"#;
            let updated = http.json(&format!("PATCH {path}"), body).await.json();
            let expected = json!({"sku": "A-1", "stock": 4, "tags": ["a", "b"], "odd,name": null});
            assert_eq!(updated["attributes"], expected, "{updated}");
            let body = r#"{"attributes":{"stock":3,"odd,name":"x","sku":"B"}}"#;
            let line =
                format!("PATCH {path}?updateMask=attributes.stock,attributes.%60odd,name%60");
            let updated = http.json(&line, body).await.json();
            assert_eq!(updated["attributes"]["sku"], "A-1", "not in the mask: {updated}");
            assert_eq!(updated["attributes"]["odd,name"], "x");
            let wrong =
                http.json(&format!("PATCH {path}"), r#"{"attributes":{"stock":"many"}}"#).await;
            assert_eq!(wrong.reason(), "CONSTRAINT_VIOLATED", "{wrong:?}");
        }
        let created = http.json("POST /products", r#"{"name":"shelf","price":1.5}"#).await;
        assert_eq!(created.status, StatusCode::BAD_REQUEST, "no default for the id: {created:?}");
    }
}

async fn errors(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let large = format!(r#"{{"name":"x","description":"{}"}}"#, "x".repeat(300_000));
    let cases = [
        ("GET /v1/products/0", 400, "INVALID_FIELD"),
        ("GET /v1/products/abc", 400, "INVALID_FIELD"),
        ("GET /v1/products/9223372036854775808", 400, "INVALID_FIELD"),
        ("GET /v1/products/9999999", 404, "PRODUCT_NOT_FOUND"),
        ("GET /v1/products/9999998?minVersion=99999999", 404, "PRODUCT_NOT_FOUND"),
        ("GET /v1/products/1?minVersion=abc", 400, "INVALID_FIELD"),
        ("GET /v1/products/1?maxStaleness=soon", 400, "INVALID_FIELD"),
        ("GET /v1/products/1?latest=perhaps", 400, "INVALID_FIELD"),
        ("GET /v1/products/1?colour=red", 400, "INVALID_FIELD"),
        ("GET /v1/products/1?latest=true&latest=true", 400, "INVALID_FIELD"),
        ("GET /v1/products:batchGet", 400, "INVALID_FIELD"),
        ("GET /v1/products:batchGet?ids=x", 400, "INVALID_FIELD"),
        ("GET /v1/hotKeys?scope=SCOPE_WORLD", 400, "INVALID_FIELD"),
        ("GET /v1/hotKeys?limit=5000", 400, "INVALID_FIELD"),
        ("GET /v1/products/", 404, "NO_SUCH_PATH"),
        ("GET /v1/products/1/", 404, "NO_SUCH_PATH"),
        ("GET /", 404, "NO_SUCH_PATH"),
        ("GET /v1/products", 405, "METHOD_NOT_ALLOWED"),
        ("POST /v1/products/1", 405, "METHOD_NOT_ALLOWED"),
        ("PUT /v1/products/1", 405, "METHOD_NOT_ALLOWED"),
        ("POST /v1/hotKeys", 405, "METHOD_NOT_ALLOWED"),
        ("PATCH /v1/products/1", 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST /v1/products", 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST /products", 415, "UNSUPPORTED_MEDIA_TYPE"),
    ];
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        for (line, status, reason) in cases {
            let answer = http.send(line, &[], b"").await;
            let got = (answer.status.as_u16(), answer.reason());
            assert_eq!(got, (status, reason.to_owned()), "{line}: {answer:?}");
            assert_eq!(answer.header("content-type"), "application/json", "{line}");
            assert_eq!(answer.header("allow").is_empty(), status != 405, "{line}");
            assert_eq!(answer.header("accept").is_empty(), status != 415, "{line}");
            assert_eq!(answer.json()["details"][0]["domain"], "hotshelf");
        }
        let refused = http.json("POST /v1/products", &large).await;
        assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE, "{refused:?}");
        let line = format!("PATCH /v1/products/{id}");
        let json = ("content-type", "application/json");
        let encoded = http.send(&line, &[json, ("content-encoding", "br")], b"{}").await;
        let got = (encoded.status, encoded.header("accept-encoding"));
        assert_eq!(got, (StatusCode::UNSUPPORTED_MEDIA_TYPE, "gzip"), "{encoded:?}");
    }
    run(&stack.sql, "ALTER TABLE products ADD CONSTRAINT cheap CHECK (price < 100)").await;
    let mut http = Http::connect(VERSIONS[0], node.grpc_addr.port()).await;
    let refused = http.json(&format!("PUT /products/{id}"), r#"{"price":100}"#).await;
    assert_eq!((refused.status.as_u16(), refused.reason()), (400, "CONSTRAINT_VIOLATED".into()));
}

async fn hot_keys(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    for _ in 0..20 {
        node.product(id).await;
    }
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        let response = http.begin("GET /v1/hotKeys?limit=1&interval=0.1s", &[], b"").await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let (mut body, mut text) = (response.into_body(), String::new());
        while text.matches("\n\n").count() < 3 {
            let frame = body.frame().await.unwrap().unwrap();
            text += std::str::from_utf8(frame.data_ref().unwrap()).unwrap();
        }
        let first = text.split("\n\n").next().unwrap().strip_prefix("data: ").unwrap();
        let snapshot: Value = serde_json::from_str(first).unwrap();
        assert_eq!(snapshot["hotKeys"][0]["productId"], id.to_string(), "{snapshot}");
    }
    let mut http = Http::connect(VERSIONS[0], node.grpc_addr.port()).await;
    let response = http.begin("GET /v1/hotKeys", &[], b"").await;
    let (stopped, body) = tokio::join!(node.app.stop(), response.into_body().collect());
    let _ = stopped;
    let text = String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap();
    assert!(text.contains("event: status\ndata: {") && text.contains("DRAINING"), "{text}");
}

async fn openapi(stack: Stack) {
    let node = stack.node().await;
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        let document = http.get("/openapi.json").await;
        assert_eq!(document.status, StatusCode::OK);
        assert!(document.json().is_object());
    }
}
