//! How busy Postgres was, as it says itself: looked at many times a second, around every proxy.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use checker::history::{Clock, Micros};
use sqlx::PgPool;
use tokio::task::JoinHandle;

const INTERVAL: Duration = Duration::from_millis(50);
/// Longer, and Postgres counts as silent.
const PATIENCE: Duration = Duration::from_secs(1);

/// `application_name` keeps out the drill itself.
const LOOK: &str = "SELECT
    (SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements
        JOIN pg_database d ON d.oid = dbid WHERE datname = current_database()
        AND query LIKE 'SELECT asked.id, product.id IS NOT NULL, %'),
    (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND state = 'active' AND application_name <> 'drill'
        AND query LIKE 'SELECT asked.id, product.id IS NOT NULL, %')";

/// What was seen at one moment.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Micros,
    /// Loads that there have been, ever.
    loads: i64,
    /// Loads that run.
    running: i64,
}

/// Looks, until it is dropped.
#[derive(Debug)]
pub struct Observer {
    looks: Arc<Mutex<Vec<Look>>>,
    task: JoinHandle<()>,
}

/// What Postgres bore during some time.
#[derive(Clone, Copy, Debug, Default)]
pub struct DatabaseLoad {
    /// SELECTs for the caches, a second.
    pub loads_per_second: f64,
    /// Most of them at once.
    pub most_running: i64,
    /// The most loads that Postgres has counted; 0 when the looks do not find them.
    pub ever: i64,
}

impl Observer {
    pub(crate) fn start(sql: PgPool, clock: Clock) -> Self {
        let looks = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&looks);
        let task = tokio::spawn(async move {
            loop {
                let look = sqlx::query_as::<_, (i64, i64)>(LOOK).fetch_one(&sql);
                // While it is down or frozen there is nothing to count.
                if let Ok(Ok((loads, running))) = tokio::time::timeout(PATIENCE, look).await {
                    let look = Look { at: clock.now(), loads, running };
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push(look);
                }
                tokio::time::sleep(INTERVAL).await;
            }
        });
        Self { looks, task }
    }

    /// What there was between two moments.
    #[must_use]
    pub fn between(&self, from: Micros, to: Micros) -> DatabaseLoad {
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let during: Vec<Look> =
            looks.iter().filter(|look| (from..=to).contains(&look.at)).copied().collect();
        // A server that was killed has forgotten its count, and begins again.
        let loads: i64 = during.windows(2).map(|pair| (pair[1].loads - pair[0].loads).max(0)).sum();
        #[expect(clippy::cast_precision_loss, reason = "counts and times of a minute")]
        let loads_per_second = loads as f64 / (to.saturating_sub(from).max(1) as f64 / 1e6);
        let most_running = during.iter().map(|look| look.running).max().unwrap_or(0);
        let ever = looks.iter().map(|look| look.loads).max().unwrap_or(0);
        DatabaseLoad { loads_per_second, most_running, ever }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
