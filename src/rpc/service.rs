//! The writes and the stream of ProductService; `reads.rs` has GetProduct and BatchGetProducts.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::codec::Stored;
use super::connection::Origin;
use super::convert::KeepCurrency;
use super::hot_keys::{HotKeysStream, Watchers};
use super::{convert, status};
use crate::catalog::Catalog;
use crate::entry::Entry;
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
        let origin = Origin::of(&request)?;
        let keep_currency = request.extensions().get::<KeepCurrency>().is_some();
        let request = request.into_inner();
        let expected = convert::expected_version(request.expected_version)?;
        let (id, patch) = convert::patch(request, keep_currency)?;
        let updated = self.catalog.update(id, patch, expected, origin.call).await;
        written(updated.map_err(|error| origin.failed(&error, expected))?)
    }

    async fn create_product(
        &self,
        request: Request<CreateProductRequest>,
    ) -> Result<Response<Stored>, Status> {
        self.may_write()?;
        let origin = Origin::of(&request)?;
        let product = convert::new_product(request.into_inner())?;
        let created = self.catalog.create(product, origin.call).await;
        written(created.map_err(|error| origin.failed(&error, None))?)
    }

    async fn delete_product(
        &self,
        request: Request<DeleteProductRequest>,
    ) -> Result<Response<()>, Status> {
        self.may_write()?;
        let origin = Origin::of(&request)?;
        let request = request.into_inner();
        let id = convert::id("id", request.id)?;
        let expected = convert::expected_version(request.expected_version)?;
        let deleted = self.catalog.delete(id, expected, origin.call).await;
        deleted.map_err(|error| origin.failed(&error, expected))?;
        Ok(Response::new(()))
    }

    type StreamHotKeysStream = HotKeysStream;

    async fn stream_hot_keys(
        &self,
        request: Request<StreamHotKeysRequest>,
    ) -> Result<Response<HotKeysStream>, Status> {
        let origin = Origin::of(&request)?;
        let stream = self.watchers.watch(request.into_inner(), &origin)?;
        Ok(Response::new(stream))
    }
}

fn written(entry: Entry) -> Result<Response<Stored>, Status> {
    if entry.is_tombstone() {
        return Err(status::internal("a write returned a tombstone"));
    }
    Ok(Response::new(Stored(entry)))
}
