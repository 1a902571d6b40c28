//! Redis is down, frozen, slow, full, read-only, empty or old; or cannot be reached.

use std::time::Duration;

use devstack::{Direction, Redis};

use super::UNFELT;
use crate::Error;
use crate::fault::{Demands, Fault};
use crate::instance::is_frozen;
use crate::products::{Fleet, change, held_version, insert};
use crate::stage::{Stage, blocking};

/// Below `--redis-timeout`: every command succeeds, and late.
const SLOW: Duration = Duration::from_millis(80);
const BETWEEN_CUTS: Duration = Duration::from_millis(100);
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);
/// How soon a change is served that no hint told: the polls of the outbox go on.
const POLLED: Duration = Duration::from_secs(1);

pub(super) fn all() -> Vec<Fault> {
    let unfelt = |fault| Fault { demands: UNFELT, ..fault };
    let soon_fast = |fault| Fault { demands: Demands { soon_fast: true, ..UNFELT }, ..fault };
    let ten = Duration::from_secs(10);
    vec![
        Fault {
            demands: Demands { p99_ratio: Some(5.0), ..UNFELT },
            ..Fault::new("redis-killed", "kill -9, then empty", |stage| Box::pin(killed(stage)))
        },
        soon_fast(Fault {
            hold: ten,
            ..Fault::new("redis-frozen", "SIGSTOP", |stage| Box::pin(frozen(stage)))
        }),
        soon_fast(Fault {
            hold: ten,
            ..Fault::new("redis-black-holed", "packets vanish, no reset", |stage| {
                Box::pin(black_holed(stage))
            })
        }),
        soon_fast(Fault::new("redis-slow", "80 ms later", |stage| Box::pin(slow(stage)))),
        unfelt(Fault::new("redis-full", "OOM, noeviction", |stage| Box::pin(full(stage)))),
        unfelt(Fault::new("redis-evicting", "allkeys-random at its limit", |stage| {
            Box::pin(evicting(stage))
        })),
        unfelt(Fault::new("redis-read-only", "it becomes a replica", |stage| {
            Box::pin(read_only(stage))
        })),
        unfelt(Fault::new("redis-flushed", "FLUSHALL", |stage| Box::pin(flushed(stage)))),
        unfelt(Fault {
            redis_goes_back: true,
            ..Fault::new("redis-old-data", "restarted with an old snapshot", |stage| {
                Box::pin(old_data(stage))
            })
        }),
        unfelt(Fault {
            redis_goes_back: true,
            // Each key takes a while to be read, and others are answered meanwhile: LOADING.
            redis: &[("key-load-delay", "1500"), ("loading-process-events-interval-bytes", "1024")],
            ..Fault::new("redis-loading", "restarted, and LOADING for a while", |stage| {
                Box::pin(loading(stage))
            })
        }),
        Fault {
            demands: Demands { stalest: Some(POLLED), ..UNFELT },
            ..Fault::new("hints-cut", "only the subscribers' connections", |stage| {
                Box::pin(hints_cut(stage))
            })
        },
    ]
}

async fn killed(stage: &Stage<'_>) -> Result<(), Error> {
    let (redis, _) = stage.redis()?;
    redis.kill();
    stage.prove("PING fails", redis.pid().is_none() && redis.command(&["PING"]).is_err())?;
    stage.hold().await;
    Ok(blocking(|| redis.start_again())?)
}

async fn frozen(stage: &Stage<'_>) -> Result<(), Error> {
    let (redis, _) = stage.redis()?;
    let is_frozen = || redis.pid().is_some_and(is_frozen);
    redis.pause();
    stage.prove_soon("its process is in state T", async || is_frozen()).await?;
    stage.hold().await;
    stage.prove("to the end", is_frozen())?;
    redis.resume();
    Ok(())
}

async fn black_holed(stage: &Stage<'_>) -> Result<(), Error> {
    let (_, proxy) = stage.redis()?;
    proxy.black_hole(Direction::Both);
    stage.hold().await;
    let swallowed = proxy.counts().to_server.swallowed;
    stage.prove(format!("the proxy swallowed {swallowed} bytes"), swallowed > 0)?;
    proxy.heal();
    Ok(())
}

async fn slow(stage: &Stage<'_>) -> Result<(), Error> {
    let (_, proxy) = stage.redis()?;
    proxy.delay(Direction::ToClient, SLOW);
    stage.hold().await;
    let delayed = proxy.counts().to_client.delayed;
    stage.prove(format!("the proxy delayed {delayed} bytes"), delayed > 0)?;
    proxy.heal();
    Ok(())
}

/// Whether a write is refused in these words.
fn refuses_writes(redis: &Redis, words: &str) -> bool {
    redis.command(&["SET", "drill", "x"]).is_err_and(|error| error.to_string().contains(words))
}

async fn full(stage: &Stage<'_>) -> Result<(), Error> {
    let (redis, _) = stage.redis()?;
    redis.command(&["CONFIG", "SET", "maxmemory", "1"])?;
    stage.prove("SET is answered with OOM", refuses_writes(redis, "OOM"))?;
    stage.hold().await;
    stage.prove("to the end", refuses_writes(redis, "OOM"))?;
    redis.command(&["CONFIG", "SET", "maxmemory", "0"])?;
    Ok(())
}

async fn evicting(stage: &Stage<'_>) -> Result<(), Error> {
    let (redis, _) = stage.redis()?;
    let used = info(redis, "memory", "used_memory:").unwrap_or(2_000_000);
    redis.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-random"])?;
    // A little below: some keys go with each that comes.
    redis.command(&["CONFIG", "SET", "maxmemory", &(used - 50_000).to_string()])?;
    stage.hold().await;
    let evicted = info(redis, "stats", "evicted_keys:").unwrap_or(0);
    stage.prove(format!("{evicted} keys were evicted"), evicted > 0)?;
    redis.command(&["CONFIG", "SET", "maxmemory", "0"])?;
    Ok(())
}

fn info(redis: &Redis, section: &str, field: &str) -> Option<u64> {
    let info = redis.command(&["INFO", section]).ok()?;
    info.lines().find_map(|line| line.strip_prefix(field)?.trim().parse().ok())
}

async fn read_only(stage: &Stage<'_>) -> Result<(), Error> {
    let (redis, _) = stage.redis()?;
    // No server listens there.
    redis.command(&["REPLICAOF", "127.0.0.1", "1"])?;
    stage.prove("SET is answered with READONLY", refuses_writes(redis, "READONLY"))?;
    stage.hold().await;
    stage.prove("to the end", refuses_writes(redis, "READONLY"))?;
    redis.command(&["REPLICAOF", "NO", "ONE"])?;
    Ok(())
}

async fn flushed(stage: &Stage<'_>) -> Result<(), Error> {
    let (redis, _) = stage.redis()?;
    let before = redis.command(&["DBSIZE"])?;
    stage.prove(format!("it held {before} keys"), before != "0")?;
    // In one step, so that no write comes in between.
    let left =
        redis.command(&["EVAL", "redis.call('FLUSHALL') return redis.call('DBSIZE')", "0"])?;
    stage.prove("and then none", left == "0")?;
    stage.hold().await;
    Ok(())
}

async fn old_data(stage: &Stage<'_>) -> Result<(), Error> {
    let ((redis, _), fleet) = (stage.redis()?, Fleet::of(&stage.world.instances)?);
    let product = insert(&stage.world.sql, "own", 1).await?[0];
    let held = || blocking(|| held_version(redis, product));
    fleet.read(product).await;
    stage.prove_soon("Redis held a product", async || held().is_some()).await?;
    let saved = held();
    blocking(|| redis.command(&["SAVE"]))?;
    stage.hold().await;
    change(&stage.world.sql, product).await?;
    stage.prove_soon("then a newer version of it", async || held() > saved).await?;
    redis.kill();
    blocking(|| redis.start_again())?;
    let keys = redis.command(&["DBSIZE"])?;
    stage.prove(format!("and came back with {keys} keys and the older one"), held() == saved)?;
    stage.hold().await;
    Ok(())
}

async fn loading(stage: &Stage<'_>) -> Result<(), Error> {
    let (redis, _) = stage.redis()?;
    blocking(|| redis.command(&["SAVE"]))?;
    redis.kill();
    let loading = blocking(|| {
        std::thread::scope(|scope| {
            let start = scope.spawn(|| redis.start_again());
            let mut seen = 0;
            while !start.is_finished() {
                let said = redis.command(&["GET", "drill"]);
                seen += u32::from(said.is_err_and(|error| error.to_string().contains("LOADING")));
                std::thread::park_timeout(BETWEEN_LOOKS);
            }
            start.join().map(|started| started.map(|()| seen))
        })
    });
    let seen = loading.map_err(|_| Error::Instance("starting Redis panicked".to_owned()))??;
    stage.prove(format!("{seen} commands were answered with LOADING"), seen > 0)?;
    stage.hold().await;
    Ok(())
}

async fn hints_cut(stage: &Stage<'_>) -> Result<(), Error> {
    let (redis, _) = stage.redis()?;
    let (began, mut killed) = (tokio::time::Instant::now(), 0);
    while began.elapsed() < stage.hold {
        let gone = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"])?;
        killed += gone.parse().unwrap_or(0);
        tokio::time::sleep(BETWEEN_CUTS).await;
    }
    stage.prove(format!("{killed} connections of subscribers were killed"), killed > 0)
}
