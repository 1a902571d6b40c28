//! The writes of the JSON API.

use std::sync::Arc;

use http::header::{CACHE_CONTROL, ETAG, IF_MATCH, LOCATION};
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use prost::Message;
use prost_types::FieldMask;
use serde_json::Map;
use tonic::{Code, Status};

use super::conditional::{self, Representation};
use super::product_json::{self, Style};
use super::rest::{Route, id, input, json};
use super::{Exchange, Unary, plain, query};
use crate::metrics::Method;
use crate::proto::{CreateProductRequest, DeleteProductRequest, Product, UpdateProductRequest};
use crate::rpc::callers::Named;
use crate::rpc::reply::Reply;
use crate::rpc::status::{self, invalid};

const UPDATE: &str = "/hotshelf.v1.ProductService/UpdateProduct";
const CREATE: &str = "/hotshelf.v1.ProductService/CreateProduct";
const DELETE: &str = "/hotshelf.v1.ProductService/DeleteProduct";

pub(super) async fn answer(
    exchange: &Exchange,
    route: &Route,
    head: &Parts,
    named: Option<Arc<Named>>,
    body: &[u8],
) -> Result<Response<Reply>, Status> {
    let expected = conditional::expected_version(&head.headers)?;
    match (route, exchange.method) {
        (Route::Product(style, text), Method::UpdateProduct) => {
            let id = id(text)?.get();
            let (request, keep_currency) = exchange.admitted(named.as_deref(), || {
                update(exchange, head, *style, id, expected, body)
            })?;
            let message = request.encode_to_vec();
            let answer = exchange.unary(UPDATE, named.clone(), &message, keep_currency).await?;
            written(exchange, named.as_deref(), answer, *style)
        }
        (Route::Product(style, text), _) => {
            let id = id(text)?.get();
            let preset = Map::from_iter([("id".to_owned(), id.to_string().into())]);
            let message = query::message(&input(exchange, DELETE)?, head.uri.query(), preset)?;
            let request = DeleteProductRequest::decode(&*message);
            let mut request = request.map_err(|why| status::malformed(&why.to_string()))?;
            request.expected_version = one_of(request.expected_version, expected)?;
            let answer = exchange.unary(DELETE, named, &request.encode_to_vec(), false).await?;
            Ok(deleted(answer, *style))
        }
        (Route::Products(style), _) => {
            conditional::refuse(&head.headers, &[IF_MATCH])?;
            if head.uri.query().is_some_and(|query| !query.is_empty()) {
                return Err(invalid("query", "is no part of this method"));
            }
            let request = exchange.admitted(named.as_deref(), || create(exchange, *style, body))?;
            let answer =
                exchange.unary(CREATE, named.clone(), &request.encode_to_vec(), false).await?;
            created(exchange, named.as_deref(), answer, *style)
        }
        _ => Err(status::no_such_path()),
    }
}

/// The version of the query or that of `If-Match`.
fn one_of(query: Option<i64>, header: Option<i64>) -> Result<Option<i64>, Status> {
    match (query, header) {
        (Some(_), Some(_)) => {
            Err(invalid("expected_version", "is in the query and in If-Match; give one"))
        }
        (query, header) => Ok(query.or(header)),
    }
}

/// The request, and whether the product keeps its currency.
fn update(
    exchange: &Exchange,
    head: &Parts,
    style: Style,
    id: i64,
    expected: Option<i64>,
    body: &[u8],
) -> Result<(UpdateProductRequest, bool), Status> {
    let plain::Body { mut product, fields, has_plain_price } =
        plain::read(&exchange.web.types, body, style)?;
    if product.id != 0 && product.id != id {
        return Err(invalid("product.id", "is not the id in the path"));
    }
    product.id = id;
    let (mut paths, mut in_query) = (None, None);
    let query = head.uri.query().unwrap_or_default();
    for (name, text) in url::form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "updateMask" | "update_mask" if paths.is_none() => paths = Some(plain::mask(&text)),
            "expectedVersion" | "expected_version" if in_query.is_none() => {
                let version = text.parse();
                let version =
                    version.map_err(|_| invalid("expected_version", "must be a whole number"))?;
                in_query = Some(version);
            }
            _ => {
                let shown: String = name.chars().take(50).collect();
                return Err(invalid(shown, "is no parameter of this method, or is given twice"));
            }
        }
    }
    // Without a mask the fields that are there are changed, also to nothing.
    let paths = paths.filter(|paths| !paths.is_empty()).unwrap_or(fields);
    if paths.is_empty() {
        return Err(invalid("product", "has no field that can be changed"));
    }
    let request = UpdateProductRequest {
        product: Some(product),
        update_mask: Some(FieldMask { paths }),
        expected_version: one_of(in_query, expected)?,
    };
    Ok((request, has_plain_price))
}

fn create(exchange: &Exchange, style: Style, body: &[u8]) -> Result<CreateProductRequest, Status> {
    let plain::Body { mut product, has_plain_price, .. } =
        plain::read(&exchange.web.types, body, style)?;
    if let (Some(price), true) = (&mut product.price, has_plain_price) {
        let only = exchange.reads.shared.catalog.only_currency();
        let only = only.ok_or_else(|| {
            let why = match style {
                Style::Plain => "must be given: send \"currency\", such as \"USD\", with the price",
                Style::Proto => "must be given: send the price as an object",
            };
            invalid("product.price.currency_code", why)
        })?;
        only.code().clone_into(&mut price.currency_code);
    }
    Ok(CreateProductRequest { product: Some(product) })
}

/// The response with the product after a write.
fn written(
    exchange: &Exchange,
    named: Option<&Named>,
    answer: Unary,
    style: Style,
) -> Result<Response<Reply>, Status> {
    let content = product_json::product(&answer.message, style)?;
    let etag = conditional::etag_of(&answer.message, Representation::Json(style));
    let mut response = json(exchange.hold(named, content)?, answer.rest.into_retained());
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    if let Some(etag) = etag {
        headers.insert(ETAG, etag);
    }
    Ok(response)
}

fn created(
    exchange: &Exchange,
    named: Option<&Named>,
    answer: Unary,
    style: Style,
) -> Result<Response<Reply>, Status> {
    let id = Product::decode(&*answer.message).unwrap_or_default().id;
    let mut response = written(exchange, named, answer, style)?;
    let location = match style {
        Style::Proto => format!("/v1/products/{id}"),
        Style::Plain => {
            *response.status_mut() = StatusCode::CREATED;
            format!("/products/{id}")
        }
    };
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

fn deleted(answer: Unary, style: Style) -> Response<Reply> {
    let retained = answer.rest.into_retained();
    match style {
        Style::Proto => json("{}".into(), retained),
        Style::Plain => {
            let mut response = Response::new(Reply::whole(None, Code::Ok, retained));
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
    }
}
