//! Writing: one statement in Postgres, and once it is committed nothing can turn it into a failure.

use std::sync::Arc;
use std::time::Instant;

use super::{Catalog, Error};
use crate::entry::Entry;
use crate::moment::Moment;
use crate::pause::Point;
use crate::product::{Change, NewProduct, Patch, Product, ProductId, Version};
use crate::redis::Publish;

impl Catalog {
    /// Changes a product. A write that could not begin before its caller's `deadline`, or waits for somebody else's
    /// then, is not made; one that is under way goes on, and the caller does not hear how it ended.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::VersionMismatch`], [`Error::Unavailable`] when nothing was changed,
    /// [`Error::OutcomeUnknown`] when it may have been.
    pub async fn update(
        self: &Arc<Self>,
        id: ProductId,
        patch: Patch,
        expected: Option<Version>,
        deadline: Option<Instant>,
    ) -> Result<Entry, Error> {
        let catalog = Arc::clone(self);
        self.detached(async move {
            let known_at = Moment::now();
            let product = catalog.postgres.update(id, &patch, expected, deadline).await?;
            Ok(catalog.publish_product(&product, known_at).await)
        })
        .await
    }

    /// Creates a product.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when nothing was changed, [`Error::OutcomeUnknown`] when it may have been.
    pub async fn create(
        self: &Arc<Self>,
        product: NewProduct,
        deadline: Option<Instant>,
    ) -> Result<Entry, Error> {
        let catalog = Arc::clone(self);
        self.detached(async move {
            let known_at = Moment::now();
            let product = catalog.postgres.create(&product, deadline).await?;
            Ok(catalog.publish_product(&product, known_at).await)
        })
        .await
    }

    /// Deletes a product.
    ///
    /// # Errors
    /// As those of [`update`](Self::update).
    pub async fn delete(
        self: &Arc<Self>,
        id: ProductId,
        expected: Option<Version>,
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        let catalog = Arc::clone(self);
        self.detached(async move {
            let known_at = Moment::now();
            let version = catalog.postgres.delete(id, expected, deadline).await?;
            let tombstone = Entry::tombstone(version, known_at, catalog.options.ttl.tombstone());
            catalog.publish(id, &tombstone).await;
            Ok(())
        })
        .await
    }

    async fn publish_product(&self, product: &Product, known_at: Moment) -> Entry {
        let entry = Entry::live(product, known_at, self.options.ttl.product());
        self.publish(product.id, &entry).await;
        entry
    }

    /// Makes a committed write known. Nothing here can fail it: what Redis did not take, and what a crash cuts
    /// off, is in the outbox, and the relay does it.
    async fn publish(&self, id: ProductId, entry: &Entry) {
        self.pauses.reach(Point::Committed).await;
        // Until Redis has it too, no load may bring back what Redis still holds, not even when memory has no
        // room for the new entry.
        let _floor = self.hot.begin_load(id);
        self.hot.offer(id, entry.clone());
        self.pauses.reach(Point::OfferedToMemory).await;
        let published = self.redis.publish(id, entry, Publish::Written).await;
        self.pauses.reach(Point::Published).await;
        // Redis first, so that whoever hears of the change finds it there.
        let told = match published {
            Ok(()) => self.redis.append_changes(&[Change { id, revision: entry.revision() }]).await,
            Err(unavailable) => Err(unavailable),
        };
        if told.is_err() {
            tracing::warn!(%id, version = %entry.revision().version, "Redis did not take a committed write; the relay will see to it");
        }
    }

    /// Runs a write to its end, whether or not its caller stays.
    async fn detached<T: Send + 'static>(
        &self,
        write: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let outcome = self.drain.spawn(write).await;
        // It may have been committed before it panicked.
        outcome.unwrap_or_else(|panic| {
            tracing::error!(%panic, "a write ended early");
            Err(Error::OutcomeUnknown("the write ended early".to_owned()))
        })
    }
}
