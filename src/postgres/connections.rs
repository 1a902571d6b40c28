//! The connections for the statements of calls.
//!
//! sqlx's pool pings a connection before and after each use, and hides why it cannot connect. Here a statement costs one round
//! trip: connections are opened ahead of use, with their statements prepared, and maintained in the background. Maintenance
//! also detects that Postgres is down; then statements fail at once instead of waiting.

mod maintenance;

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::PgConnection;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::error::{is_broken, message, unreachable};
use super::session::Session;
use super::{Error, within};
pub(super) use maintenance::Prepare;

/// A write uses a connection without a ping if its last response is not older than this. A write on a dead connection cannot be
/// repeated, because it may have been committed.
const ALIVE_FOR: Duration = Duration::from_millis(1_500);

/// The timeout of a ping, after which the connection is closed.
const DEAD: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Connections {
    session: Session,
    limit: u32,
    /// The timeout of waiting for a connection, which includes opening one.
    timeout: Duration,
    slots: Arc<Semaphore>,
    state: Mutex<PoolState>,
    /// Starts maintenance at once.
    wake: Notify,
}

#[derive(Debug)]
struct PoolState {
    /// A stack: the connection that was used last is at the end and is used next.
    idle: VecDeque<Idle>,
    /// Idle, in use, and being opened.
    open: u32,
    opening: u32,
    /// When the last response arrived on any connection.
    answered: Instant,
    /// When the last connection broke.
    broke: Option<Instant>,
    /// Why Postgres is considered down; `None` while it is up.
    down: Option<String>,
    closed: bool,
}

#[derive(Debug)]
struct Idle {
    connection: PgConnection,
    opened: Instant,
    answered: Instant,
}

/// A connection in use. When dropped it returns to the pool if the outcome of its last statement was
/// [recorded](Self::record_outcome), and is closed otherwise.
#[derive(Debug)]
pub(super) struct Connection {
    idle: Option<Idle>,
    is_reusable: bool,
    /// Whether it was opened for this use. If so, a break is not the result of idle time, and a retry is unlikely to help.
    pub(super) is_fresh: bool,
    pool: Arc<Connections>,
    _slot: OwnedSemaphorePermit,
}

impl Connections {
    pub(super) fn new(session: Session, limit: u32, timeout: Duration) -> Arc<Self> {
        let state = PoolState {
            idle: VecDeque::new(),
            open: 0,
            opening: 0,
            answered: Instant::now(),
            broke: None,
            down: None,
            closed: false,
        };
        let slots = Arc::new(Semaphore::new(limit as usize));
        Arc::new(Self {
            session,
            limit,
            timeout,
            slots,
            state: Mutex::new(state),
            wake: Notify::new(),
        })
    }

    /// A connection for a statement that can be repeated if the connection turns out to be dead.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        deadline: Option<Instant>,
    ) -> Result<Connection, Error> {
        self.check()?;
        let until = self.until(deadline);
        let slot = Arc::clone(&self.slots).acquire_owned();
        let slot = tokio::time::timeout_at(until.into(), slot).await;
        let slot =
            slot.map_err(|_| Error::Unavailable("no connection became free in time".into()))?;
        let slot =
            slot.map_err(|_| Error::Unavailable("the connections were closed".to_owned()))?;
        self.check()?;
        let idle = self.state.lock().idle.pop_back();
        let (idle, is_fresh) = match idle {
            Some(idle) => (idle, false),
            None => (self.open(until).await?, true),
        };
        let pool = Arc::clone(self);
        Ok(Connection { idle: Some(idle), is_reusable: true, is_fresh, pool, _slot: slot })
    }

    /// A connection for a statement that cannot be repeated: it has responded recently, or is pinged first.
    pub(super) async fn acquire_alive(
        self: &Arc<Self>,
        deadline: Option<Instant>,
    ) -> Result<Connection, Error> {
        use sqlx::Connection as _;
        let mut connection = self.acquire(deadline).await?;
        if connection.has_responded_recently() {
            return Ok(connection);
        }
        let until = self.until(deadline);
        let limit = until.saturating_duration_since(Instant::now());
        match within(Some(limit), connection.ping()).await {
            Ok(()) => connection.record_response(),
            Err(_) => connection.reopen(deadline).await?,
        }
        Ok(connection)
    }

    fn until(&self, deadline: Option<Instant>) -> Instant {
        let until = Instant::now() + self.timeout;
        deadline.map_or(until, |deadline| deadline.min(until))
    }

    /// Fails while Postgres is known to be down, so that no statement waits for it.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.state.lock().down.as_ref().map_or(Ok(()), |why| Err(Error::Unavailable(why.clone())))
    }

    async fn open(self: &Arc<Self>, until: Instant) -> Result<Idle, Error> {
        let opening = Opening::begin(self);
        let began = Instant::now();
        match self.session.open(until.saturating_duration_since(began)).await {
            Ok(connection) => Ok(opening.done(connection)),
            Err(error) => {
                self.unreachable_since(began, &error);
                Err(unreachable(&error))
            }
        }
    }

    /// Records a failed connection attempt. Postgres is down if no connection is left, or if the attempt got no response and
    /// none of the connections has responded for [`DEAD`]. A server that only rejects further connections is not down.
    fn unreachable_since(&self, began: Instant, error: &sqlx::Error) {
        let mut state = self.state.lock();
        let is_silent = state.answered < began && state.answered.elapsed() >= DEAD;
        let has_answered = matches!(error, sqlx::Error::Database(_));
        let is_down = state.open == state.opening || (is_silent && !has_answered);
        if is_down && state.down.is_none() {
            let why = message(error);
            tracing::warn!(%why, "PostgreSQL cannot be reached; statements fail at once until it can");
            state.down = Some(why);
        }
        drop(state);
        self.wake.notify_one();
    }

    fn answered(&self) {
        let mut state = self.state.lock();
        state.answered = Instant::now();
        if state.down.take().is_some() {
            tracing::info!("PostgreSQL can be reached again");
            self.wake.notify_one();
        }
    }

    /// Open connections, and those of them that are not in use.
    pub(super) fn counts(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.open.into(), state.idle.len() as u64)
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// Closes idle connections. Those in use are closed when they are dropped.
    pub(super) async fn close(&self) {
        use sqlx::Connection as _;
        let idle = {
            let mut state = self.state.lock();
            state.closed = true;
            state.open -= u32::try_from(state.idle.len()).unwrap_or(state.open);
            std::mem::take(&mut state.idle)
        };
        self.slots.close();
        let close = idle.into_iter().map(|idle| idle.connection.close());
        futures_util::future::join_all(close).await;
    }
}

/// A connection that is being opened. It counts as open, so that the limit holds.
struct Opening<'a>(Option<&'a Connections>);

impl<'a> Opening<'a> {
    fn begin(pool: &'a Connections) -> Self {
        let mut state = pool.state.lock();
        (state.open, state.opening) = (state.open + 1, state.opening + 1);
        drop(state);
        Self(Some(pool))
    }

    fn done(mut self, connection: PgConnection) -> Idle {
        if let Some(pool) = self.0.take() {
            pool.state.lock().opening -= 1;
            pool.answered();
        }
        let now = Instant::now();
        Idle { connection, opened: now, answered: now }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if let Some(pool) = self.0 {
            let mut state = pool.state.lock();
            (state.open, state.opening) = (state.open - 1, state.opening - 1);
        }
    }
}

impl Connection {
    /// Records the outcome of the last statement. After a broken connection, maintenance pings the others.
    pub(super) fn record_outcome<T>(&mut self, outcome: &Result<T, sqlx::Error>) {
        match outcome {
            Err(error) if is_broken(error) => {
                // The others may have broken for the same reason.
                self.pool.state.lock().broke = Some(Instant::now());
                self.pool.wake.notify_one();
            }
            _ => self.record_response(),
        }
    }

    fn record_response(&mut self) {
        self.is_reusable = true;
        if let Some(idle) = &mut self.idle {
            idle.answered = Instant::now();
        }
        self.pool.answered();
    }

    /// Whether it has responded within [`ALIVE_FOR`], and since the last connection broke.
    fn has_responded_recently(&self) -> bool {
        let broke = self.pool.state.lock().broke;
        let answered = self.idle.as_ref().map(|idle| idle.answered);
        answered.is_some_and(|answered| answered.elapsed() < ALIVE_FOR && Some(answered) > broke)
    }

    /// Replaces this broken connection by a new one.
    pub(super) async fn reopen(&mut self, deadline: Option<Instant>) -> Result<(), Error> {
        if self.idle.take().is_some() {
            self.pool.state.lock().open -= 1;
        }
        self.pool.check()?;
        self.idle = Some(self.pool.open(self.pool.until(deadline)).await?);
        (self.is_reusable, self.is_fresh) = (true, true);
        Ok(())
    }
}

impl Deref for Connection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.idle.as_ref().expect("it is taken in drop only").connection
    }
}

impl DerefMut for Connection {
    /// A connection that was used mutably returns to the pool only after the outcome was recorded.
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.is_reusable = false;
        &mut self.idle.as_mut().expect("it is taken in drop only").connection
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(idle) = self.idle.take() else { return };
        let mut state = self.pool.state.lock();
        if self.is_reusable && !state.closed {
            state.idle.push_back(idle);
        } else {
            state.open -= 1;
        }
    }
}
