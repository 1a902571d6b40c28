//! What happens to the connections in the background: they are opened ahead, asked for a sign of life, and renewed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sqlx::{Connection as _, Executor, PgConnection, SqlSafeStr, SqlStr};

use super::{Connections, DEAD, Idle, Opening};
use crate::postgres::within;

/// How often. Too low: needless statements. Too high: that Postgres is down, or up again, is noticed late.
const INTERVAL: Duration = Duration::from_millis(250);
/// A connection that was silent for this long is asked for a sign of life.
const SILENT: Duration = Duration::from_millis(700);
/// A connection is renewed when it is this old, so that an instance finds its way back after a failover of a load balancer, and
/// what the server keeps for it does not grow for ever.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
/// Connections that are opened at once.
const AT_ONCE: usize = 4;

impl Connections {
    /// Looks after the connections until it is dropped. `prepare` is prepared on each one that is opened here.
    pub(in crate::postgres) async fn maintain(
        self: Arc<Self>,
        prepare: &'static [&'static str],
    ) -> Result<Infallible, Infallible> {
        loop {
            self.ask_idle().await;
            self.open_ahead(prepare).await;
            let pause = INTERVAL.mul_f64(rand::random_range(0.8..1.2));
            // At once when a statement says that something broke; but not in a tight loop.
            let woken = tokio::time::timeout(pause, self.wake.notified()).await;
            if woken.is_ok() {
                tokio::time::sleep(INTERVAL / 25).await;
            }
        }
    }

    /// Opens all connections, at most `limit` long: what is served first should not wait for them.
    pub(in crate::postgres) async fn warm(
        self: &Arc<Self>,
        prepare: &'static [&'static str],
        limit: Duration,
    ) {
        let warm = async { while self.open_ahead(prepare).await {} };
        let _ = tokio::time::timeout(limit, warm).await;
    }

    /// Asks those that were silent for a while for a sign of life, and closes those that give none.
    async fn ask_idle(self: &Arc<Self>) {
        let silent = self.take_silent();
        join_all(silent.into_iter().map(|idle| self.ask(idle))).await;
    }

    fn take_silent(&self) -> VecDeque<Idle> {
        let mut state = self.state.lock();
        // After a break every connection is suspect that has not answered since.
        let broke = state.broke;
        let is_silent = |idle: &Idle| {
            idle.answered.elapsed() >= SILENT || broke.is_some_and(|broke| idle.answered < broke)
        };
        let (silent, others) = std::mem::take(&mut state.idle).into_iter().partition(is_silent);
        state.idle = others;
        silent
    }

    async fn ask(self: &Arc<Self>, mut idle: Idle) {
        let asked = Instant::now();
        if idle.opened.elapsed() > LIFETIME {
            self.state.lock().open -= 1;
            let _ = within(Some(DEAD), idle.connection.close()).await;
            return;
        }
        match within(Some(DEAD), idle.connection.ping()).await {
            Ok(()) => {
                self.answered();
                idle.answered = asked;
                let mut state = self.state.lock();
                if state.closed {
                    state.open -= 1;
                } else {
                    // Behind those that are in use more.
                    state.idle.push_front(idle);
                }
            }
            Err(_) => self.state.lock().open -= 1,
        }
    }

    /// Opens some of the connections that are missing; while Postgres is down, one to see whether it still is. Returns
    /// whether more are missing, and Postgres answers.
    async fn open_ahead(self: &Arc<Self>, prepare: &'static [&'static str]) -> bool {
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

    async fn open_idle(self: &Arc<Self>, prepare: &'static [&'static str]) -> bool {
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
        // Where the schema is not there yet, the statement itself says so.
        let prepared =
            within(Some(self.timeout.max(DEAD)), prepare_all(&mut connection, prepare)).await;
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
    statements: &'static [&'static str],
) -> Result<(), sqlx::Error> {
    for statement in statements {
        let statement: SqlStr = statement.into_sql_str();
        connection.prepare(statement).await?;
    }
    Ok(())
}
