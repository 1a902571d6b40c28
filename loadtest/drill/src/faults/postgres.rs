//! Postgres is down, frozen, slow, restarted, full of connections, failing over, or does not answer a load.

use std::time::Duration;

use devstack::Direction;
use sqlx::{Connection, Executor, PgConnection};

use crate::Error;
use crate::fault::{Demands, Fault};
use crate::instance::is_frozen;
use crate::stage::{Stage, blocking};
use crate::world::World;

const SLOW: Duration = Duration::from_millis(200);
const BETWEEN_CONNECTIONS: Duration = Duration::from_millis(50);

/// Connections of the instances: those of the drill have a name.
const CUT_INSTANCES: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = ''";

pub(super) fn all() -> Vec<Fault> {
    let cached = |fault| Fault { demands: Demands::CACHED_IS_SERVED, ..fault };
    vec![
        cached(Fault::new("postgres-killed", "kill -9", |stage| Box::pin(killed(stage)))),
        cached(Fault::new("postgres-frozen", "SIGSTOP", |stage| Box::pin(frozen(stage)))),
        cached(Fault::new("postgres-slow", "200 ms later", |stage| Box::pin(slow(stage)))),
        cached(Fault::new("postgres-restarted", "a fast restart", |stage| {
            Box::pin(restarted(stage))
        })),
        cached(Fault::new("postgres-full", "no connection left", |stage| Box::pin(full(stage)))),
        cached(Fault::new("postgres-failover", "connections cut, then read-only", |stage| {
            Box::pin(failover(stage))
        })),
        cached(Fault::new("postgres-hanging", "loads wait for a lock", |stage| {
            Box::pin(hanging(stage))
        })),
    ]
}

async fn killed(stage: &Stage<'_>) -> Result<(), Error> {
    let postgres = &stage.world.postgres;
    blocking(|| postgres.kill());
    let refused = PgConnection::connect(&postgres.url()).await.is_err();
    stage.prove("connections are refused", refused && postgres.pid().is_none())?;
    stage.hold().await;
    Ok(blocking(|| postgres.start_again())?)
}

async fn frozen(stage: &Stage<'_>) -> Result<(), Error> {
    let postgres = &stage.world.postgres;
    let is_frozen = || postgres.pid().is_some_and(is_frozen);
    blocking(|| postgres.pause());
    stage.prove_soon("its process is in state T", async || is_frozen()).await?;
    stage.hold().await;
    stage.prove("to the end", is_frozen())?;
    blocking(|| postgres.resume());
    Ok(())
}

async fn slow(stage: &Stage<'_>) -> Result<(), Error> {
    let proxy = &stage.world.to_postgres;
    proxy.delay(Direction::ToClient, SLOW);
    stage.hold().await;
    let delayed = proxy.counts().to_client.delayed;
    stage.prove(format!("the proxy delayed {delayed} bytes"), delayed > 0)?;
    proxy.heal();
    Ok(())
}

async fn restarted(stage: &Stage<'_>) -> Result<(), Error> {
    let postgres = &stage.world.postgres;
    let before = postgres.pid();
    blocking(|| {
        postgres.stop();
        postgres.start_again()
    })?;
    stage.prove("it is another process", postgres.pid() != before)?;
    stage.hold().await;
    Ok(())
}

async fn full(stage: &Stage<'_>) -> Result<(), Error> {
    let url = format!("{}?application_name=drill", stage.world.postgres.url());
    let (began, mut hogs, mut refusals) = (tokio::time::Instant::now(), Vec::new(), 0);
    while began.elapsed() < stage.hold {
        // Whatever becomes free is taken, and what the instances got is taken away.
        loop {
            match PgConnection::connect(&url).await {
                Ok(hog) => hogs.push(hog),
                Err(error) if error.to_string().contains("too many clients") => break,
                Err(error) => return Err(error.into()),
            }
        }
        refusals += 1;
        if let Some(hog) = hogs.first_mut() {
            hog.execute(CUT_INSTANCES).await?;
        }
        tokio::time::sleep(BETWEEN_CONNECTIONS).await;
    }
    let held = hogs.len();
    stage.prove(format!("{held} connections held, {refusals} refused"), refusals > 0)
}

async fn failover(stage: &Stage<'_>) -> Result<(), Error> {
    let World { sql, to_postgres, .. } = stage.world;
    let mut admin = sql.acquire().await?;
    admin.execute("SET default_transaction_read_only = off").await?;
    admin.execute("ALTER SYSTEM SET default_transaction_read_only = on").await?;
    to_postgres.cut();
    admin.execute("SELECT pg_reload_conf()").await?;
    tokio::time::sleep(stage.hold / 4).await;
    to_postgres.heal();
    let counts = to_postgres.counts();
    stage.prove(format!("{} connections were cut", counts.cut), counts.cut > 0)?;
    stage
        .prove_soon("writes are refused: read-only", async || {
            let write = sql.execute("UPDATE products SET name = name WHERE false").await;
            write.is_err_and(|error| error.to_string().contains("read-only"))
        })
        .await?;
    stage.hold().await;
    admin.execute("ALTER SYSTEM RESET default_transaction_read_only").await?;
    admin.execute("SELECT pg_reload_conf()").await?;
    Ok(())
}

async fn hanging(stage: &Stage<'_>) -> Result<(), Error> {
    let mut lock = stage.world.sql.begin().await?;
    lock.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE").await?;
    let waiting = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    stage
        .prove_soon("statements wait for the lock", async || {
            sqlx::query_scalar(waiting).fetch_one(&stage.world.sql).await.is_ok_and(|n: i64| n > 0)
        })
        .await?;
    stage.hold().await;
    Ok(lock.rollback().await?)
}
