//! Maintenance of the connections in the background: opens them ahead of use, pings idle ones, and closes old ones.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sqlx::{Connection as _, Executor, PgConnection, SqlStr};
use tokio::sync::OwnedSemaphorePermit;

use super::{Connections, DEAD, Idle, Opening};
use crate::postgres::within;

/// Too low: needless statements. Too high: it is detected late that Postgres is down, or up again.
const INTERVAL: Duration = Duration::from_millis(250);
/// An idle connection is pinged when its last response is this old.
const PING_AFTER: Duration = Duration::from_millis(700);
/// A connection is closed at this age and replaced, so that connections return to the right server after a failover of a load
/// balancer, and the server's memory per session stays bounded.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
/// Connections that are opened concurrently.
const AT_ONCE: usize = 4;

/// The statements to prepare on a connection.
pub(in crate::postgres) type Prepare = Box<dyn Fn() -> Vec<SqlStr> + Send + Sync>;

impl Connections {
    /// Maintains the connections until it is dropped. Prepares the statements of `prepare` on each connection that it opens.
    pub(in crate::postgres) async fn maintain(
        self: Arc<Self>,
        prepare: Prepare,
    ) -> Result<Infallible, Infallible> {
        loop {
            self.ping_idle().await;
            self.open_ahead(&prepare).await;
            let pause = INTERVAL.mul_f64(rand::random_range(0.8..1.2));
            // A broken connection ends the pause at once, but the loop must not spin.
            let woken = tokio::time::timeout(pause, self.wake.notified()).await;
            if woken.is_ok() {
                tokio::time::sleep(INTERVAL / 25).await;
            }
        }
    }

    /// Opens all connections, in at most `limit`, so that the first calls need not wait for them.
    pub(in crate::postgres) async fn warm(self: &Arc<Self>, prepare: &Prepare, limit: Duration) {
        let warm = async { while self.open_ahead(prepare).await {} };
        let _ = tokio::time::timeout(limit, warm).await;
    }

    /// Pings idle connections, and closes those that do not respond. Half of them at a time, so that a call finds an idle
    /// connection and need not open one.
    async fn ping_idle(self: &Arc<Self>) {
        let most = self.state.lock().idle.len().div_ceil(2);
        for _ in 0..2 {
            let due = self.take_for_ping(most);
            join_all(due.into_iter().map(|(idle, slot)| self.ping(idle, slot))).await;
        }
    }

    /// A connection keeps its slot during the ping; otherwise calls would open more connections than the limit.
    fn take_for_ping(&self, most: usize) -> Vec<(Idle, OwnedSemaphorePermit)> {
        let mut state = self.state.lock();
        // After a connection broke, all others that have not responded since are pinged.
        let broke = state.broke;
        let is_due = |idle: &Idle| {
            idle.answered.elapsed() >= PING_AFTER
                || broke.is_some_and(|broke| idle.answered < broke)
        };
        let mut due = Vec::new();
        for idle in std::mem::take(&mut state.idle) {
            let slot = (due.len() < most && is_due(&idle))
                .then(|| Arc::clone(&self.slots).try_acquire_owned().ok());
            match slot.flatten() {
                Some(slot) => due.push((idle, slot)),
                None => state.idle.push_back(idle),
            }
        }
        due
    }

    async fn ping(self: &Arc<Self>, mut idle: Idle, _slot: OwnedSemaphorePermit) {
        let sent = Instant::now();
        if idle.opened.elapsed() > LIFETIME {
            self.state.lock().open -= 1;
            let _ = within(Some(DEAD), idle.connection.close()).await;
            return;
        }
        match within(Some(DEAD), idle.connection.ping()).await {
            Ok(()) => {
                self.answered();
                idle.answered = sent;
                let mut state = self.state.lock();
                if state.closed {
                    state.open -= 1;
                } else {
                    // At the front, because those at the end are used first.
                    state.idle.push_front(idle);
                }
            }
            Err(_) => self.state.lock().open -= 1,
        }
    }

    /// Opens up to [`AT_ONCE`] missing connections; while Postgres is down, only one, as a probe. Returns whether more are
    /// missing and all attempts succeeded.
    async fn open_ahead(self: &Arc<Self>, prepare: &Prepare) -> bool {
        let missing = {
            let state = self.state.lock();
            let missing = self.limit.saturating_sub(state.open) as usize;
            if state.closed {
                0
            } else if state.down.is_some() {
                missing.min(1)
            } else {
                missing
            }
        };
        let open = (0..missing.min(AT_ONCE)).map(|_| self.open_idle(prepare));
        let opened = join_all(open).await;
        missing > AT_ONCE && opened.into_iter().all(|opened| opened)
    }

    async fn open_idle(self: &Arc<Self>, prepare: &Prepare) -> bool {
        let Ok(_slot) = Arc::clone(&self.slots).try_acquire_owned() else { return false };
        let opening = Opening::begin(self);
        let began = Instant::now();
        let opened = self.session.open(self.timeout.max(DEAD)).await;
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(error) => {
                self.unreachable_since(began, &error);
                return false;
            }
        };
        // Other errors, such as a missing table, are left to the statement itself.
        let prepared =
            within(Some(self.timeout.max(DEAD)), prepare_all(&mut connection, prepare())).await;
        if prepared.as_ref().is_err_and(super::is_broken) {
            return false;
        }
        let idle = opening.done(connection);
        let mut state = self.state.lock();
        if state.closed {
            state.open -= 1;
            return false;
        }
        state.idle.push_front(idle);
        true
    }
}

async fn prepare_all(
    connection: &mut PgConnection,
    statements: Vec<SqlStr>,
) -> Result<(), sqlx::Error> {
    for statement in statements {
        connection.prepare(statement).await?;
    }
    Ok(())
}
