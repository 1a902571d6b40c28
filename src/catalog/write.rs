//! Writes: one statement in Postgres. After its commit a write cannot fail.

use std::sync::Arc;

use super::{Catalog, Error};
use crate::caller::CallContext;
use crate::entry::Entry;
use crate::hot_cache::LoadTicket;
use crate::moment::Moment;
use crate::pause::Point;
use crate::product::{Change, NewProduct, Patch, Product, ProductId, Version};
use crate::redis::Publish;

impl Catalog {
    /// Changes a product. At the caller's deadline a write that has not begun, or that waits for another transaction's row
    /// lock, is given up; one that is being executed goes on, and its outcome is not reported.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::VersionMismatch`]; [`Error::OverBudget`], [`Error::ProductBusy`], [`Error::Unavailable`] when nothing was changed,
    /// [`Error::OutcomeUnknown`] when it may have been.
    pub async fn update(
        self: &Arc<Self>,
        id: ProductId,
        patch: Patch,
        expected: Option<Version>,
        call: CallContext,
    ) -> Result<Entry, Error> {
        let catalog = Arc::clone(self);
        self.detached(async move {
            let (known_at, ticket) = (Moment::now(), catalog.hot.begin_load(id));
            let product = catalog.postgres.update(id, &patch, expected, call).await?;
            Ok(catalog.publish_product(&product, known_at, &ticket).await)
        })
        .await
    }

    /// Creates a product.
    ///
    /// # Errors
    /// [`Error::OverBudget`] and [`Error::Unavailable`] when nothing was changed, [`Error::OutcomeUnknown`] when it may have been.
    pub async fn create(
        self: &Arc<Self>,
        product: NewProduct,
        call: CallContext,
    ) -> Result<Entry, Error> {
        let catalog = Arc::clone(self);
        self.detached(async move {
            let known_at = Moment::now();
            let product = catalog.postgres.create(&product, call).await?;
            // The id is new: no tier holds a newer revision.
            let ticket = catalog.hot.begin_load(product.id);
            Ok(catalog.publish_product(&product, known_at, &ticket).await)
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
        call: CallContext,
    ) -> Result<(), Error> {
        let catalog = Arc::clone(self);
        self.detached(async move {
            let (known_at, ticket) = (Moment::now(), catalog.hot.begin_load(id));
            let version = catalog.postgres.delete(id, expected, call).await?;
            let tombstone = Entry::tombstone(version, known_at, catalog.options.ttl.tombstone());
            catalog.publish(id, &tombstone, &ticket).await;
            Ok(())
        })
        .await
    }

    async fn publish_product(
        &self,
        product: &Product,
        known_at: Moment,
        ticket: &LoadTicket,
    ) -> Entry {
        let entry = Entry::live(product, known_at, self.options.ttl.product());
        self.publish(product.id, &entry, ticket).await;
        entry
    }

    /// Publishes a committed write to memory, Redis and the other instances. A failure here fails nothing: the outbox has the
    /// change, and the relay applies it. `ticket` is from before the statement.
    async fn publish(&self, id: ProductId, entry: &Entry, ticket: &LoadTicket) {
        self.feed.raise_ceiling(entry.revision().version);
        self.pauses.reach(Point::Committed).await;
        ticket.offer(entry.clone());
        self.pauses.reach(Point::OfferedToMemory).await;
        if !ticket.is_covered() {
            // The statement took longer than changes are kept, or the epoch changed: a newer revision may be in Redis.
            return;
        }
        let published = self.redis.publish(id, entry, Publish::Written).await;
        self.pauses.reach(Point::Published).await;
        // Redis before the hint: an instance that receives the hint finds the entry in Redis.
        let hinted = match published {
            Ok(()) => self.redis.publish_hint(&[Change { id, revision: entry.revision() }]).await,
            Err(unavailable) => Err(unavailable),
        };
        if hinted.is_err() {
            tracing::debug!(%id, version = %entry.revision().version, "Redis did not take a committed write; the relay applies it");
        }
    }

    /// Runs a write to its end, also when its call is cancelled.
    async fn detached<T: Send + 'static>(
        &self,
        write: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let outcome = self.drain.spawn(write).await;
        // The statement may have been committed before the panic.
        outcome.unwrap_or_else(|panic| {
            tracing::error!(%panic, "a write ended early");
            Err(Error::OutcomeUnknown("the write ended early".to_owned()))
        })
    }
}
