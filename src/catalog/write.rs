//! Writes: one statement in Postgres. After its commit a write cannot fail.

use std::sync::Arc;

use tracing::Instrument;

use super::{Catalog, Error};
use crate::caller::CallContext;
use crate::entry::Entry;
use crate::hot_cache::LoadTicket;
use crate::moment::Moment;
use crate::pause::Point;
use crate::product::{Change, NewProduct, Patch, Product, ProductId, Version};
use crate::redis::Publish;
use crate::traces::Span;

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
            let span = catalog.metrics.traces.call(call.span);
            let statement = span.client("postgresql", "update");
            let product = catalog.postgres.update(id, &patch, expected, call).await?;
            drop(statement);
            Ok(catalog.publish_product(&product, known_at, &ticket, &span).await)
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
            let span = catalog.metrics.traces.call(call.span);
            let statement = span.client("postgresql", "create");
            let product = catalog.postgres.create(&product, call).await?;
            drop(statement);
            // The id is new: no tier holds a newer revision.
            let ticket = catalog.hot.begin_load(product.id);
            Ok(catalog.publish_product(&product, known_at, &ticket, &span).await)
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
            let span = catalog.metrics.traces.call(call.span);
            let statement = span.client("postgresql", "delete");
            let version = catalog.postgres.delete(id, expected, call).await?;
            drop(statement);
            let tombstone = Entry::tombstone(version, known_at, catalog.options.ttl.tombstone());
            catalog.publish(id, &tombstone, &ticket, &span).await;
            Ok(())
        })
        .await
    }

    async fn publish_product(
        &self,
        product: &Product,
        known_at: Moment,
        ticket: &LoadTicket,
        span: &Span,
    ) -> Entry {
        let entry = Entry::live(product, known_at, self.options.ttl.product());
        self.publish(product.id, &entry, ticket, span).await;
        entry
    }

    /// Publishes a committed write to memory, Redis and the other instances. A failure here fails nothing: the outbox has the
    /// change, and the relay applies it. `ticket` is from before the statement.
    async fn publish(&self, id: ProductId, entry: &Entry, ticket: &LoadTicket, span: &Span) {
        span.set("hotshelf.version", entry.revision().version.0);
        self.feed.raise_ceiling(entry.revision().version);
        self.pauses.reach(Point::Committed).await;
        ticket.offer(entry.clone());
        self.pauses.reach(Point::OfferedToMemory).await;
        if !ticket.is_covered() {
            // The statement took longer than changes are kept, or the epoch changed: a newer revision may be in Redis.
            return;
        }
        let command = span.client("redis", "publish");
        let published = self.redis.publish(id, entry, Publish::Written).await;
        drop(command);
        self.pauses.reach(Point::Published).await;
        // Redis before the hint: an instance that receives the hint finds the entry in Redis.
        let command = span.client("redis", "hint");
        let hinted = match published {
            Ok(()) => self.redis.publish_hint(&[Change { id, revision: entry.revision() }]).await,
            Err(unavailable) => Err(unavailable),
        };
        drop(command);
        if hinted.is_err() {
            tracing::debug!(%id, version = %entry.revision().version, "Redis did not take a committed write; the relay applies it");
        }
    }

    /// Runs a write to its end, also when its call is cancelled.
    async fn detached<T: Send + 'static>(
        &self,
        write: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let outcome = self.drain.spawn(write.in_current_span()).await;
        // The statement may have been committed before the panic.
        outcome.unwrap_or_else(|panic| {
            tracing::error!(%panic, "a write ended early");
            Err(Error::OutcomeUnknown("the write ended early".to_owned()))
        })
    }
}
