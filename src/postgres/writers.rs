//! The turns of writes.
//!
//! A write waits for a locked row until the caller's deadline. So that locked rows do not take all connections, the writes of one
//! product wait here for each other, in a queue of four; all writes together have a share of the connections; and a write that
//! waits for a row releases its connection from time to time if other writes wait for one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::RandomState;
use parking_lot::Mutex;

use super::Error;
use super::budget::{Budget, Counts, Demand, DemandGuard, Limits, NoTurn, Turn};
use crate::caller::CallContext;
use crate::metrics::PostgresShare;
use crate::product::ProductId;

/// Writes that may wait for a turn of the share.
const QUEUED: usize = 256;
/// Writes of one product that may wait for each other. Each delays the next by a commit, or for as long as another transaction
/// holds the row. Too high: the last ones only wait for their deadlines. Too low: short bursts of writes are refused.
const QUEUED_OF_PRODUCT: usize = 4;

type Rows = Mutex<HashMap<ProductId, Arc<Row>, RandomState>>;

/// The writes of one product.
#[derive(Debug)]
struct Row {
    order: Arc<Budget>,
    /// Of all of them for a turn of the share: the one that is first gets it as early as the caller with the fewest turns would,
    /// because the others wait for it.
    demand: Arc<Demand>,
}

#[derive(Debug)]
pub(super) struct Writers {
    share: Arc<Budget>,
    rows: Arc<Rows>,
}

/// The turn of a write. Released when dropped.
#[derive(Debug)]
pub(super) struct WriteTurn {
    /// Whether the write waited for another write of its product.
    pub(super) has_waited: bool,
    share: Option<Turn>,
    demand: Arc<Demand>,
    _waiter: DemandGuard,
    _row: Option<Turn>,
    _place: Option<QueuePlace>,
}

/// A place among the writes of one product. The last place that is dropped removes the product from the map.
#[derive(Debug)]
struct QueuePlace {
    id: ProductId,
    row: Option<Arc<Row>>,
    rows: Arc<Rows>,
}

impl Writers {
    /// At most `limit` writes run at once, and others wait for at most `timeout`. Writes of the same product wait for each other
    /// until their deadlines.
    pub(super) fn new(limit: usize, timeout: Duration) -> Self {
        // One connection is left to other callers, however many rows one caller waits for.
        let of_one = limit.saturating_sub(1).max(1);
        let timeout = Some(timeout);
        let limits = Limits { running: limit, of_one, queued: QUEUED, timeout, is_steady: false };
        Self { share: Budget::new(limits), rows: Arc::default() }
    }

    /// Waits for the turn of a write of `id`; `None` for a new product.
    ///
    /// # Errors
    /// [`Error::ProductBusy`] when too many writes of the product wait, [`Error::Locked`] when they took until the deadline, and
    /// [`Error::OverBudget`] when the share had no turn in time, or its queue is full.
    pub(super) async fn turn(
        &self,
        id: Option<ProductId>,
        call: CallContext,
    ) -> Result<WriteTurn, Error> {
        let place = id.map(|id| self.place(id));
        let demand = place.as_ref().and_then(QueuePlace::demand).unwrap_or_else(Demand::of_writes);
        let _waiter = demand.wait(call, true);
        let row = match &place {
            Some(place) => place.wait(call).await?,
            None => None,
        };
        let share = self.share.turn_until(&demand, call.deadline).await;
        let share = Some(share.map_err(|_| Error::OverBudget(PostgresShare::Writes))?);
        let has_waited = row.as_ref().is_some_and(|row| row.has_waited);
        Ok(WriteTurn { has_waited, share, demand, _waiter, _row: row, _place: place })
    }

    /// Whether other writes wait for a connection.
    pub(super) fn has_waiting(&self) -> bool {
        self.share.counts().waiting > 0
    }

    /// Releases the turn of the share to other writes and waits for another one. The place among the writes of the product stays.
    ///
    /// # Errors
    /// [`Error::Locked`] when the deadline passed first, [`Error::OverBudget`] when the queue is full.
    pub(super) async fn renew(&self, turn: &mut WriteTurn, call: CallContext) -> Result<(), Error> {
        turn.share = None;
        loop {
            match self.share.turn_until(&turn.demand, call.deadline).await {
                Ok(share) => {
                    turn.share = Some(share);
                    return Ok(());
                }
                Err(NoTurn::Late) if call.deadline.is_none_or(|at| Instant::now() < at) => {}
                Err(NoTurn::Late) => return Err(Error::Locked),
                Err(NoTurn::Full) => return Err(Error::OverBudget(PostgresShare::Writes)),
            }
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.share.counts()
    }

    fn place(&self, id: ProductId) -> QueuePlace {
        let row = Arc::clone(self.rows.lock().entry(id).or_insert_with(Row::new));
        QueuePlace { id, row: Some(row), rows: Arc::clone(&self.rows) }
    }
}

impl Row {
    fn new() -> Arc<Self> {
        let queued = QUEUED_OF_PRODUCT;
        let one_at_a_time =
            Limits { running: 1, of_one: 1, queued, timeout: None, is_steady: false };
        Arc::new(Self { order: Budget::new(one_at_a_time), demand: Demand::of_writes() })
    }
}

impl QueuePlace {
    fn demand(&self) -> Option<Arc<Demand>> {
        self.row.as_ref().map(|row| Arc::clone(&row.demand))
    }

    async fn wait(&self, call: CallContext) -> Result<Option<Turn>, Error> {
        let Some(row) = &self.row else { return Ok(None) };
        match row.order.turn_of(call).await {
            Ok(turn) => Ok(Some(turn)),
            Err(NoTurn::Full) => Err(Error::ProductBusy),
            Err(NoTurn::Late) => Err(Error::Locked),
        }
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        let mut rows = self.rows.lock();
        self.row = None;
        // A count of 1 is exact, because `place` clones under the lock of the map.
        if rows.get(&self.id).is_some_and(|row| Arc::strong_count(row) == 1) {
            rows.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::caller::Caller;

    fn id(id: i64) -> Option<ProductId> {
        ProductId::new(id)
    }

    fn call(connection: u64) -> CallContext {
        CallContext { caller: Caller::of_connection(connection), ..CallContext::BACKGROUND }
    }

    #[tokio::test]
    async fn writes_of_one_product_wait_for_each_other_and_others_do_not() {
        let writers = Writers::new(2, Duration::from_millis(50));
        let deadline = Some(Instant::now() + Duration::from_millis(50));
        let first = writers.turn(id(1), call(1)).await.expect("free");
        let soon = CallContext { deadline, ..call(1) };
        assert!(matches!(writers.turn(id(1), soon).await, Err(Error::Locked)));
        let other = writers.turn(id(2), call(2)).await.expect("free");
        let refused = writers.turn(id(3), call(3)).await;
        assert!(matches!(refused, Err(Error::OverBudget(PostgresShare::Writes))), "both are taken");
        drop(first);
        drop(writers.turn(id(1), call(1)).await.expect("free again"));
        drop(other);
        assert!(writers.rows.lock().is_empty(), "the map is empty after the last write");
    }

    #[tokio::test]
    async fn one_caller_leaves_a_connection_to_the_writes_of_others() {
        let writers = Writers::new(2, Duration::from_secs(60));
        let _first = writers.turn(id(1), call(1)).await.expect("free");
        assert!(writers.turn(id(2), call(1)).now_or_never().is_none(), "it waits for its first");
        writers.turn(id(3), call(2)).now_or_never().expect("at once").expect("free");
    }

    #[tokio::test]
    async fn a_write_that_waits_for_its_row_gives_its_turn_to_others() {
        let writers = Writers::new(1, Duration::from_secs(60));
        let mut first = writers.turn(id(1), call(1)).await.expect("free");
        assert!(!writers.has_waiting());
        let mut other = Box::pin(writers.turn(id(2), call(2)));
        assert!(other.as_mut().now_or_never().is_none());
        assert!(writers.has_waiting());
        let mut renewed = Box::pin(writers.renew(&mut first, call(1)));
        assert!(renewed.as_mut().now_or_never().is_none(), "the other has its turn");
        drop(other.now_or_never().expect("at once").expect("a turn"));
        renewed.now_or_never().expect("at once").expect("a turn");
    }

    #[tokio::test]
    async fn a_write_that_another_caller_waits_for_gets_the_turn_of_that_caller() {
        let writers = Writers::new(1, Duration::from_secs(60));
        let running = writers.turn(id(1), call(1)).await.expect("free");
        let mut earlier = Box::pin(writers.turn(id(2), call(1)));
        let mut wanted = Box::pin(writers.turn(id(3), call(1)));
        let mut polite = Box::pin(writers.turn(id(3), call(2)));
        for waiting in [&mut earlier, &mut wanted, &mut polite] {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        drop(running);
        let wanted = wanted.now_or_never().expect("before the earlier one").expect("a turn");
        assert!(earlier.as_mut().now_or_never().is_none());
        drop(wanted);
        assert!(polite.as_mut().now_or_never().is_none(), "now it waits for the share");
        drop(earlier.now_or_never().expect("its caller's turn").expect("a turn"));
        polite.now_or_never().expect("at once").expect("a turn");
        assert!(writers.rows.lock().is_empty());
    }

    #[tokio::test]
    async fn a_few_writes_of_one_product_wait_and_the_caller_with_the_most_is_refused_first() {
        let writers = Writers::new(5, Duration::from_secs(60));
        let first = writers.turn(id(1), call(1)).await.expect("free");
        let mut waiting: Vec<_> =
            (0..QUEUED_OF_PRODUCT).map(|_| Box::pin(writers.turn(id(1), call(1)))).collect();
        for waiting in &mut waiting {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        let refused = writers.turn(id(1), call(1)).now_or_never().expect("at once");
        assert!(matches!(refused, Err(Error::ProductBusy)));
        let mut other = Box::pin(writers.turn(id(1), call(2)));
        assert!(other.as_mut().now_or_never().is_none(), "it has a place");
        let last = waiting.pop().expect("some").now_or_never().expect("at once");
        assert!(matches!(last, Err(Error::ProductBusy)), "it lost its place to the other caller");
        drop(first);
        other.now_or_never().expect("it has had least").expect("free");
    }
}
