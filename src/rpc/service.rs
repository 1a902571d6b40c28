//! The service: from request to domain, and from answer to stored bytes.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use prost::encoding::int64;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

use super::codec::Stored;
use super::deadline::Deadline;
use super::hot_keys::{HotKeysStream, Watchers};
use super::{convert, status};
use crate::catalog::{Answer, Catalog};
use crate::entry::Entry;
use crate::metrics::ServedBy;
use crate::product::Version;
use crate::proto::server::ProductService;
use crate::proto::{
    BatchGetProductsRequest, CreateProductRequest, DeleteProductRequest, GetProductRequest,
    StreamHotKeysRequest, UpdateProductRequest,
};

/// The field number of `BatchGetProductsResponse.not_found_ids`.
const NOT_FOUND_IDS: u32 = 2;

/// `hotshelf.v1.ProductService`.
#[derive(Debug)]
pub(super) struct Products {
    pub(super) catalog: Arc<Catalog>,
    pub(super) watchers: Arc<Watchers>,
}

#[tonic::async_trait]
impl ProductService for Products {
    async fn get_product(
        &self,
        request: Request<GetProductRequest>,
    ) -> Result<Response<Stored>, Status> {
        let request = request.into_inner();
        let id = convert::id("id", request.id)?;
        let freshness = convert::freshness(request.freshness, Instant::now())?;
        let answer = self.catalog.get(id, freshness).await;
        let answer = answer.map_err(|error| status::of_error(&error, min_version(&request)))?;
        let cache_status = cache_status(answer.from, answer.stale);
        match answer.entry.body() {
            Some(body) => Ok(with_cache_status(Stored::One(body), cache_status)),
            None => {
                let mut not_found = status::not_found();
                let value = MetadataValue::from_static(cache_status);
                not_found.metadata_mut().insert("cache-status", value);
                Err(not_found)
            }
        }
    }

    async fn batch_get_products(
        &self,
        request: Request<BatchGetProductsRequest>,
    ) -> Result<Response<Stored>, Status> {
        let request = request.into_inner();
        let ids = convert::ids(&request.ids)?;
        let freshness =
            convert::batch_freshness(request.max_staleness, request.latest, Instant::now())?;
        let answers = self.catalog.get_many(&ids, freshness).await;
        let answers = answers.map_err(|error| status::of_error(&error, None))?;
        let absent: Vec<i64> = ids
            .iter()
            .zip(&answers)
            .filter(|(_, answer)| answer.entry.revision.deleted)
            .map(|(id, _)| id.get())
            .collect();
        let (from, stale) = farthest(&answers);
        let mut parts: Vec<Bytes> =
            answers.iter().map(|answer| answer.entry.frame().clone()).collect();
        let mut not_found = BytesMut::new();
        int64::encode_packed(NOT_FOUND_IDS, &absent, &mut not_found);
        parts.push(not_found.freeze());
        Ok(with_cache_status(Stored::Many(parts), cache_status(from, stale)))
    }

    async fn update_product(
        &self,
        request: Request<UpdateProductRequest>,
    ) -> Result<Response<Stored>, Status> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        let expected = convert::expected_version(request.expected_version)?;
        let (id, patch) = convert::patch(request)?;
        written(self.catalog.update(id, patch, expected, deadline).await, expected)
    }

    async fn create_product(
        &self,
        request: Request<CreateProductRequest>,
    ) -> Result<Response<Stored>, Status> {
        let deadline = deadline(&request);
        let product = convert::new_product(request.into_inner())?;
        written(self.catalog.create(product, deadline).await, None)
    }

    async fn delete_product(
        &self,
        request: Request<DeleteProductRequest>,
    ) -> Result<Response<()>, Status> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        let id = convert::id("id", request.id)?;
        let expected = convert::expected_version(request.expected_version)?;
        let deleted = self.catalog.delete(id, expected, deadline).await;
        deleted.map_err(|error| status::of_error(&error, expected))?;
        Ok(Response::new(()))
    }

    type StreamHotKeysStream = HotKeysStream;

    async fn stream_hot_keys(
        &self,
        request: Request<StreamHotKeysRequest>,
    ) -> Result<Response<HotKeysStream>, Status> {
        let deadline = request.extensions().get::<Deadline>().copied();
        let stream = self.watchers.watch(request.into_inner(), deadline, &self.catalog)?;
        Ok(Response::new(stream))
    }
}

/// Until when the caller waits, if it said so.
fn deadline<T>(request: &Request<T>) -> Option<Instant> {
    request.extensions().get::<Deadline>().map(|deadline| deadline.0)
}

fn written(
    outcome: Result<Entry, crate::catalog::Error>,
    expected: Option<Version>,
) -> Result<Response<Stored>, Status> {
    let entry = outcome.map_err(|error| status::of_error(&error, expected))?;
    let body = entry.body().ok_or_else(|| Status::internal("a write left no product"))?;
    Ok(Response::new(Stored::One(body)))
}

fn min_version(request: &GetProductRequest) -> Option<Version> {
    match request.freshness {
        Some(crate::proto::get_product_request::Freshness::MinVersion(version)) => {
            Some(Version(version))
        }
        _ => None,
    }
}

/// A batch reports the farthest tier that any of its products came from.
fn farthest(answers: &[Answer]) -> (ServedBy, bool) {
    let distance = |answer: &Answer| answer.from as usize;
    let from =
        answers.iter().max_by_key(|answer| distance(answer)).map_or(ServedBy::Hot, |far| far.from);
    (from, answers.iter().any(|answer| answer.stale))
}

/// RFC 9211.
fn cache_status(from: ServedBy, stale: bool) -> &'static str {
    match (from, stale) {
        (ServedBy::Hot, false) => "hotshelf; hit; detail=hot",
        (ServedBy::Hot, true) => "hotshelf; hit; detail=hot; stale",
        (ServedBy::Redis, false) => "hotshelf; hit; detail=redis",
        (ServedBy::Redis, true) => "hotshelf; hit; detail=redis; stale",
        (ServedBy::Postgres, false) => "hotshelf; fwd=miss; detail=postgres",
        (ServedBy::Postgres, true) => "hotshelf; fwd=miss; detail=postgres; stale",
    }
}

fn with_cache_status(stored: Stored, value: &'static str) -> Response<Stored> {
    let mut response = Response::new(stored);
    response.metadata_mut().insert("cache-status", MetadataValue::from_static(value));
    response
}
