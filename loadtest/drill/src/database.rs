//! The load on Postgres, sampled 20 times a second from its own statistics, around every proxy.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use checker::history::{Clock, Micros};
use sqlx::PgPool;
use tokio::task::JoinHandle;

const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);
/// Of one sample. Postgres may be down or frozen.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(1);

/// The drill's own connections are left out by their `application_name`.
const SAMPLE_QUERY: &str = "SELECT
    (SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements
        JOIN pg_database d ON d.oid = dbid WHERE datname = current_database()
        AND query LIKE 'SELECT asked.id, product.\"id\" IS NOT NULL, %'),
    (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND state = 'active' AND application_name <> 'drill'
        AND query LIKE 'SELECT asked.id, product.\"id\" IS NOT NULL, %')";

#[derive(Clone, Copy, Debug)]
struct DatabaseSample {
    at: Micros,
    /// Loads since the start of the Postgres server.
    loads: i64,
    /// Loads that run at this moment.
    running: i64,
}

/// Samples Postgres until it is dropped.
#[derive(Debug)]
pub struct DatabaseSampler {
    samples: Arc<Mutex<Vec<DatabaseSample>>>,
    task: JoinHandle<()>,
}

/// Loads are SELECTs that fill the caches.
#[derive(Clone, Copy, Debug, Default)]
pub struct DatabaseLoad {
    pub loads_per_second: f64,
    /// The most loads at one time.
    pub most_running: i64,
    /// The highest count of loads in any sample of the drill; 0 if `SAMPLE_QUERY` does not match the program's SELECT.
    pub highest_count: i64,
}

impl DatabaseSampler {
    pub(crate) fn start(sql: PgPool, clock: Clock) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&samples);
        let task = tokio::spawn(async move {
            loop {
                let query = sqlx::query_as::<_, (i64, i64)>(SAMPLE_QUERY).fetch_one(&sql);
                // While Postgres is down or frozen there is no sample.
                if let Ok(Ok((loads, running))) = tokio::time::timeout(SAMPLE_TIMEOUT, query).await
                {
                    let sample = DatabaseSample { at: clock.now(), loads, running };
                    taken.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                }
                tokio::time::sleep(SAMPLE_INTERVAL).await;
            }
        });
        Self { samples, task }
    }

    #[must_use]
    pub fn between(&self, from: Micros, to: Micros) -> DatabaseLoad {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let during: Vec<DatabaseSample> =
            samples.iter().filter(|sample| (from..=to).contains(&sample.at)).copied().collect();
        // The count of a server that was killed restarts at 0.
        let loads: i64 = during.windows(2).map(|pair| (pair[1].loads - pair[0].loads).max(0)).sum();
        #[expect(clippy::cast_precision_loss, reason = "counts and times of a minute")]
        let loads_per_second = loads as f64 / (to.saturating_sub(from).max(1) as f64 / 1e6);
        let most_running = during.iter().map(|sample| sample.running).max().unwrap_or(0);
        let highest_count = samples.iter().map(|sample| sample.loads).max().unwrap_or(0);
        DatabaseLoad { loads_per_second, most_running, highest_count }
    }
}

impl Drop for DatabaseSampler {
    fn drop(&mut self) {
        self.task.abort();
    }
}
