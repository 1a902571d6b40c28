//! Writing: one statement in Postgres, and once it is committed nothing can turn it into a failure.

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
    /// Changes a product. A write that could not begin before its caller's deadline, or waits for another transaction's
    /// then, is not made; one that is under way goes on, and the caller does not hear how it ended.
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
            // An id of its own: nothing is held of it that could be newer.
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

    /// Makes a committed write known. Nothing here can fail it: what Redis did not take, and what a crash cuts
    /// off, is in the outbox, and the relay does it. `ticket` is from before the statement.
    async fn publish(&self, id: ProductId, entry: &Entry, ticket: &LoadTicket) {
        self.feed.has_given_out(entry.revision().version);
        self.pauses.reach(Point::Committed).await;
        ticket.offer(entry.clone());
        self.pauses.reach(Point::OfferedToMemory).await;
        if !ticket.is_covered() {
            // It took longer than changes are kept, or Postgres is another by now: the relay knows better.
            return;
        }
        let published = self.redis.publish(id, entry, Publish::Written).await;
        self.pauses.reach(Point::Published).await;
        // Redis first, so that an instance that hears of the change finds it there.
        let hinted = match published {
            Ok(()) => self.redis.publish_hint(&[Change { id, revision: entry.revision() }]).await,
            Err(unavailable) => Err(unavailable),
        };
        if hinted.is_err() {
            tracing::debug!(%id, version = %entry.revision().version, "Redis did not take a committed write; the relay applies it");
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
