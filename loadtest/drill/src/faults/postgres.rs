//! Postgres is down, frozen, slow, restarted, full of connections, failing over, or does not answer a load.

use std::time::Duration;

use devstack::Direction;
use sqlx::{Connection, Executor, PgConnection};

use crate::Error;
use crate::fault::{Demands, Fault};
use crate::instance::is_frozen;
use crate::scenario::{Scenario, blocking};
use crate::servers::Servers;

const SLOW: Duration = Duration::from_millis(200);
const BETWEEN_CONNECTIONS: Duration = Duration::from_millis(50);

/// Cuts the connections of the instances: those of the drill have an `application_name`.
const CUT_INSTANCES: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = ''";

pub(super) fn all() -> Vec<Fault> {
    let cached = |fault| Fault { demands: Demands::CACHED_IS_SERVED, ..fault };
    vec![
        cached(Fault::new("postgres-killed", "kill -9", |scenario| Box::pin(killed(scenario)))),
        cached(Fault::new("postgres-frozen", "SIGSTOP", |scenario| Box::pin(frozen(scenario)))),
        cached(Fault::new("postgres-slow", "200 ms later", |scenario| Box::pin(slow(scenario)))),
        cached(Fault::new("postgres-restarted", "a fast restart", |scenario| {
            Box::pin(restarted(scenario))
        })),
        cached(Fault::new("postgres-full", "no connection left", |scenario| {
            Box::pin(full(scenario))
        })),
        cached(Fault::new("postgres-failover", "connections cut, then read-only", |scenario| {
            Box::pin(failover(scenario))
        })),
        cached(Fault::new("postgres-hanging", "loads wait for a lock", |scenario| {
            Box::pin(hanging(scenario))
        })),
    ]
}

async fn killed(scenario: &Scenario<'_>) -> Result<(), Error> {
    let postgres = &scenario.servers.postgres;
    blocking(|| postgres.kill());
    let refused = PgConnection::connect(&postgres.url()).await.is_err();
    scenario.prove("connections are refused", refused && postgres.pid().is_none())?;
    scenario.hold().await;
    Ok(blocking(|| postgres.start_again())?)
}

async fn frozen(scenario: &Scenario<'_>) -> Result<(), Error> {
    let postgres = &scenario.servers.postgres;
    let is_frozen = || postgres.pid().is_some_and(is_frozen);
    blocking(|| postgres.pause());
    scenario.prove_soon("its process is in state T", async || is_frozen()).await?;
    scenario.hold().await;
    scenario.prove("to the end", is_frozen())?;
    blocking(|| postgres.resume());
    Ok(())
}

async fn slow(scenario: &Scenario<'_>) -> Result<(), Error> {
    let proxy = &scenario.servers.to_postgres;
    proxy.delay(Direction::ToClient, SLOW);
    scenario.hold().await;
    let delayed = proxy.counts().to_client.delayed;
    scenario.prove(format!("the proxy delayed {delayed} bytes"), delayed > 0)?;
    proxy.heal();
    Ok(())
}

async fn restarted(scenario: &Scenario<'_>) -> Result<(), Error> {
    let postgres = &scenario.servers.postgres;
    let before = postgres.pid();
    blocking(|| {
        postgres.stop();
        postgres.start_again()
    })?;
    scenario.prove("it is another process", postgres.pid() != before)?;
    scenario.hold().await;
    Ok(())
}

async fn full(scenario: &Scenario<'_>) -> Result<(), Error> {
    let url = format!("{}?application_name=drill", scenario.servers.postgres.url());
    let (began, mut held, mut refusals) = (tokio::time::Instant::now(), Vec::new(), 0);
    while began.elapsed() < scenario.hold {
        // Takes every free connection, then cuts those of the instances.
        loop {
            match PgConnection::connect(&url).await {
                Ok(connection) => held.push(connection),
                Err(error) if error.to_string().contains("too many clients") => break,
                Err(error) => return Err(error.into()),
            }
        }
        refusals += 1;
        if let Some(connection) = held.first_mut() {
            connection.execute(CUT_INSTANCES).await?;
        }
        tokio::time::sleep(BETWEEN_CONNECTIONS).await;
    }
    let held = held.len();
    scenario.prove(format!("{held} connections held, {refusals} refused"), refusals > 0)
}

async fn failover(scenario: &Scenario<'_>) -> Result<(), Error> {
    let Servers { sql, to_postgres, .. } = scenario.servers;
    let mut admin = sql.acquire().await?;
    admin.execute("SET default_transaction_read_only = off").await?;
    admin.execute("ALTER SYSTEM SET default_transaction_read_only = on").await?;
    to_postgres.cut();
    admin.execute("SELECT pg_reload_conf()").await?;
    tokio::time::sleep(scenario.hold / 4).await;
    to_postgres.heal();
    let counts = to_postgres.counts();
    scenario.prove(format!("{} connections were cut", counts.cut), counts.cut > 0)?;
    scenario
        .prove_soon("writes are refused: read-only", async || {
            let write = sql.execute("UPDATE products SET name = name WHERE false").await;
            write.is_err_and(|error| error.to_string().contains("read-only"))
        })
        .await?;
    scenario.hold().await;
    admin.execute("ALTER SYSTEM RESET default_transaction_read_only").await?;
    admin.execute("SELECT pg_reload_conf()").await?;
    Ok(())
}

async fn hanging(scenario: &Scenario<'_>) -> Result<(), Error> {
    let mut lock = scenario.servers.sql.begin().await?;
    lock.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE").await?;
    let waiting = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    scenario
        .prove_soon("statements wait for the lock", async || {
            sqlx::query_scalar(waiting)
                .fetch_one(&scenario.servers.sql)
                .await
                .is_ok_and(|n: i64| n > 0)
        })
        .await?;
    scenario.hold().await;
    Ok(lock.rollback().await?)
}
