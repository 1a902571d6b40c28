//! Redis is down, frozen, slow, unreachable, full, read-only or empty, or comes back with an old state.

use std::time::Duration;

use devstack::{Direction, Redis};

use super::UNFELT;
use crate::Error;
use crate::fault::{Demands, Fault};
use crate::instance::is_frozen;
use crate::products::{Clients, change, held_version, insert};
use crate::scenario::{Scenario, blocking};

/// Below `--redis-timeout`: every command succeeds, and late.
const SLOW: Duration = Duration::from_millis(80);
const BETWEEN_CUTS: Duration = Duration::from_millis(100);
const BETWEEN_COMMANDS: Duration = Duration::from_millis(20);
/// How soon a change is served without a hint, by the next poll of the outbox.
const POLLED: Duration = Duration::from_secs(1);

pub(super) fn all() -> Vec<Fault> {
    let unfelt = |fault| Fault { demands: UNFELT, ..fault };
    let soon_fast = |fault| Fault { demands: Demands { soon_fast: true, ..UNFELT }, ..fault };
    let ten = Duration::from_secs(10);
    vec![
        Fault {
            demands: Demands { p99_ratio: Some(5.0), ..UNFELT },
            ..Fault::new("redis-killed", "kill -9, then empty", |scenario| {
                Box::pin(killed(scenario))
            })
        },
        soon_fast(Fault {
            hold: ten,
            ..Fault::new("redis-frozen", "SIGSTOP", |scenario| Box::pin(frozen(scenario)))
        }),
        soon_fast(Fault {
            hold: ten,
            ..Fault::new("redis-black-holed", "packets vanish, no reset", |scenario| {
                Box::pin(black_holed(scenario))
            })
        }),
        soon_fast(Fault::new("redis-slow", "80 ms later", |scenario| Box::pin(slow(scenario)))),
        unfelt(Fault::new("redis-full", "OOM, noeviction", |scenario| Box::pin(full(scenario)))),
        unfelt(Fault::new("redis-evicting", "allkeys-random at its limit", |scenario| {
            Box::pin(evicting(scenario))
        })),
        unfelt(Fault::new("redis-read-only", "it becomes a replica", |scenario| {
            Box::pin(read_only(scenario))
        })),
        unfelt(Fault::new("redis-flushed", "FLUSHALL", |scenario| Box::pin(flushed(scenario)))),
        unfelt(Fault {
            redis_goes_back: true,
            ..Fault::new("redis-old-data", "restarted with an old snapshot", |scenario| {
                Box::pin(old_data(scenario))
            })
        }),
        unfelt(Fault {
            redis_goes_back: true,
            // Slows the loading of each key (microseconds), and lets Redis answer commands meanwhile, with LOADING.
            redis: &[("key-load-delay", "1500"), ("loading-process-events-interval-bytes", "1024")],
            ..Fault::new("redis-loading", "restarted, and LOADING for a while", |scenario| {
                Box::pin(loading(scenario))
            })
        }),
        Fault {
            demands: Demands { stalest: Some(POLLED), ..UNFELT },
            ..Fault::new("hints-cut", "only the subscribers' connections", |scenario| {
                Box::pin(hints_cut(scenario))
            })
        },
    ]
}

async fn killed(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (redis, _) = scenario.redis()?;
    redis.kill();
    scenario.prove("PING fails", redis.pid().is_none() && redis.command(&["PING"]).is_err())?;
    scenario.hold().await;
    Ok(blocking(|| redis.start_again())?)
}

async fn frozen(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (redis, _) = scenario.redis()?;
    let is_frozen = || redis.pid().is_some_and(is_frozen);
    redis.pause();
    scenario.prove_soon("its process is in state T", async || is_frozen()).await?;
    scenario.hold().await;
    scenario.prove("to the end", is_frozen())?;
    redis.resume();
    Ok(())
}

async fn black_holed(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (_, proxy) = scenario.redis()?;
    proxy.black_hole(Direction::Both);
    scenario.hold().await;
    let swallowed = proxy.counts().to_server.swallowed;
    scenario.prove(format!("the proxy swallowed {swallowed} bytes"), swallowed > 0)?;
    proxy.heal();
    Ok(())
}

async fn slow(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (_, proxy) = scenario.redis()?;
    proxy.delay(Direction::ToClient, SLOW);
    scenario.hold().await;
    let delayed = proxy.counts().to_client.delayed;
    scenario.prove(format!("the proxy delayed {delayed} bytes"), delayed > 0)?;
    proxy.heal();
    Ok(())
}

/// Whether Redis refuses a write with this error.
fn refuses_writes(redis: &Redis, error_code: &str) -> bool {
    redis.command(&["SET", "drill", "x"]).is_err_and(|error| error.to_string().contains(error_code))
}

async fn full(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (redis, _) = scenario.redis()?;
    redis.command(&["CONFIG", "SET", "maxmemory", "1"])?;
    scenario.prove("SET is answered with OOM", refuses_writes(redis, "OOM"))?;
    scenario.hold().await;
    scenario.prove("to the end", refuses_writes(redis, "OOM"))?;
    redis.command(&["CONFIG", "SET", "maxmemory", "0"])?;
    Ok(())
}

async fn evicting(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (redis, _) = scenario.redis()?;
    let used = info(redis, "memory", "used_memory:").unwrap_or(2_000_000);
    redis.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-random"])?;
    // A little below what is used: each write evicts some keys.
    redis.command(&["CONFIG", "SET", "maxmemory", &(used - 50_000).to_string()])?;
    scenario.hold().await;
    let evicted = info(redis, "stats", "evicted_keys:").unwrap_or(0);
    scenario.prove(format!("{evicted} keys were evicted"), evicted > 0)?;
    redis.command(&["CONFIG", "SET", "maxmemory", "0"])?;
    Ok(())
}

fn info(redis: &Redis, section: &str, field: &str) -> Option<u64> {
    let info = redis.command(&["INFO", section]).ok()?;
    info.lines().find_map(|line| line.strip_prefix(field)?.trim().parse().ok())
}

async fn read_only(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (redis, _) = scenario.redis()?;
    // No server listens on port 1.
    redis.command(&["REPLICAOF", "127.0.0.1", "1"])?;
    scenario.prove("SET is answered with READONLY", refuses_writes(redis, "READONLY"))?;
    scenario.hold().await;
    scenario.prove("to the end", refuses_writes(redis, "READONLY"))?;
    redis.command(&["REPLICAOF", "NO", "ONE"])?;
    Ok(())
}

async fn flushed(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (redis, _) = scenario.redis()?;
    let before = redis.command(&["DBSIZE"])?;
    scenario.prove(format!("it held {before} keys"), before != "0")?;
    // In one script, so that no write comes between the two commands.
    let left =
        redis.command(&["EVAL", "redis.call('FLUSHALL') return redis.call('DBSIZE')", "0"])?;
    scenario.prove("and then none", left == "0")?;
    scenario.hold().await;
    Ok(())
}

async fn old_data(scenario: &Scenario<'_>) -> Result<(), Error> {
    let ((redis, _), clients) = (scenario.redis()?, Clients::of(&scenario.servers.instances)?);
    let product = insert(&scenario.servers.sql, "own", 1).await?[0];
    let held = || blocking(|| held_version(redis, product));
    clients.read(product).await;
    scenario.prove_soon("Redis held a product", async || held().is_some()).await?;
    let saved = held();
    blocking(|| redis.command(&["SAVE"]))?;
    scenario.hold().await;
    change(&scenario.servers.sql, product).await?;
    scenario.prove_soon("then a newer version of it", async || held() > saved).await?;
    redis.kill();
    blocking(|| redis.start_again())?;
    let keys = redis.command(&["DBSIZE"])?;
    scenario.prove(format!("and came back with {keys} keys and the older one"), held() == saved)?;
    scenario.hold().await;
    Ok(())
}

async fn loading(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (redis, _) = scenario.redis()?;
    blocking(|| redis.command(&["SAVE"]))?;
    redis.kill();
    let loading = blocking(|| {
        std::thread::scope(|scope| {
            let start = scope.spawn(|| redis.start_again());
            let mut seen = 0;
            while !start.is_finished() {
                let reply = redis.command(&["GET", "drill"]);
                seen += u32::from(reply.is_err_and(|error| error.to_string().contains("LOADING")));
                std::thread::park_timeout(BETWEEN_COMMANDS);
            }
            start.join().map(|started| started.map(|()| seen))
        })
    });
    let seen = loading.map_err(|_| Error::Instance("starting Redis panicked".to_owned()))??;
    scenario.prove(format!("{seen} commands were answered with LOADING"), seen > 0)?;
    scenario.hold().await;
    Ok(())
}

async fn hints_cut(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (redis, _) = scenario.redis()?;
    let (began, mut killed) = (tokio::time::Instant::now(), 0);
    while began.elapsed() < scenario.hold {
        let gone = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"])?;
        killed += gone.parse().unwrap_or(0);
        tokio::time::sleep(BETWEEN_CUTS).await;
    }
    scenario.prove(format!("{killed} connections of subscribers were killed"), killed > 0)
}
