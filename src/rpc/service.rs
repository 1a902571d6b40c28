//! The service but for its reads, which are in `reads.rs`: from request to domain and back.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::codec::Stored;
use super::connection::Connection;
use super::deadline::Deadline;
use super::hot_keys::{HotKeysStream, Watchers};
use super::{convert, status};
use crate::caller::{CallContext, Caller};
use crate::catalog::Catalog;
use crate::entry::Entry;
use crate::product::Version;
use crate::proto::server::ProductService;
use crate::proto::{
    CreateProductRequest, DeleteProductRequest, StreamHotKeysRequest, UpdateProductRequest,
};

/// `hotshelf.v1.ProductService`.
#[derive(Debug)]
pub(super) struct Products {
    pub(super) catalog: Arc<Catalog>,
    pub(super) watchers: Arc<Watchers>,
    pub(super) read_only: bool,
}

impl Products {
    fn may_write(&self) -> Result<(), Status> {
        if self.read_only { Err(status::read_only()) } else { Ok(()) }
    }
}

#[tonic::async_trait]
impl ProductService for Products {
    async fn update_product(
        &self,
        request: Request<UpdateProductRequest>,
    ) -> Result<Response<Stored>, Status> {
        self.may_write()?;
        let call = call_context(&request);
        let request = request.into_inner();
        let expected = convert::expected_version(request.expected_version)?;
        let (id, patch) = convert::patch(request)?;
        written(self.catalog.update(id, patch, expected, call).await, expected)
    }

    async fn create_product(
        &self,
        request: Request<CreateProductRequest>,
    ) -> Result<Response<Stored>, Status> {
        self.may_write()?;
        let call = call_context(&request);
        let product = convert::new_product(request.into_inner())?;
        written(self.catalog.create(product, call).await, None)
    }

    async fn delete_product(
        &self,
        request: Request<DeleteProductRequest>,
    ) -> Result<Response<()>, Status> {
        self.may_write()?;
        let call = call_context(&request);
        let request = request.into_inner();
        let id = convert::id("id", request.id)?;
        let expected = convert::expected_version(request.expected_version)?;
        let deleted = self.catalog.delete(id, expected, call).await;
        deleted.map_err(|error| status::of_error(&error, expected))?;
        Ok(Response::new(()))
    }

    type StreamHotKeysStream = HotKeysStream;

    async fn stream_hot_keys(
        &self,
        request: Request<StreamHotKeysRequest>,
    ) -> Result<Response<HotKeysStream>, Status> {
        let deadline = request.extensions().get::<Deadline>().copied();
        let connection = request.extensions().get::<Arc<Connection>>().cloned();
        let connection =
            connection.ok_or_else(|| Status::internal("a call without a connection"))?;
        let stream = self.watchers.watch(request.into_inner(), deadline, &connection)?;
        Ok(Response::new(stream))
    }
}

/// Who calls, and until when it waits.
pub(super) fn call_context<T>(request: &Request<T>) -> CallContext {
    let caller = request.extensions().get::<Caller>().copied().unwrap_or(Caller::BACKGROUND);
    let deadline = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
    CallContext { caller, deadline }
}

fn written(
    outcome: Result<Entry, crate::catalog::Error>,
    expected: Option<Version>,
) -> Result<Response<Stored>, Status> {
    let entry = outcome.map_err(|error| status::of_error(&error, expected))?;
    if entry.is_tombstone() {
        return Err(status::internal("a write left no product"));
    }
    Ok(Response::new(Stored(entry)))
}
