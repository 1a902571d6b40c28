//! What happens to hotshelf itself: crashes, pauses, starts at bad moments, too much to do.

use std::fs;
use std::time::Duration;

use devstack::Direction;
use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::Error;
use crate::fault::{Demands, Fault};
use crate::instance::{Instance, is_frozen};
use crate::stage::{Stage, blocking};

/// So slow that the ordinary load is above what one load at a time can bring: in the full plan, and with less load.
const SLOW: [Duration; 2] = [Duration::from_millis(60), Duration::from_millis(250)];
/// A refusal costs next to nothing: the rest is a busy machine.
const QUICKLY: Duration = Duration::from_millis(100);
/// More connections than there are descriptors left.
const CONNECTIONS: usize = 8;

/// Short enough for a pause to be longer than all of them.
const SHORT_LIVED: &[&str] = &[
    "--soft-ttl",
    "1s",
    "--stale-if-error",
    "1s",
    "--tombstone-ttl",
    "1s",
    "--hot-lease",
    "500ms",
    "--max-staleness",
    "1s",
    "--lease-ttl",
    "500ms",
    "--lease-wait",
    "1s",
];

/// What a woken instance may serve: a second by its options, and the time of a read.
const WOKEN: Duration = Duration::from_secs(3);
/// Long enough for what it believed to be older than that.
const SHORTEST: Duration = Duration::from_secs(6);

pub(super) fn all() -> Vec<Fault> {
    vec![
        Fault::new("instance-killed", "kill -9, and a new one", |stage| Box::pin(killed(stage))),
        Fault {
            // All that it believed is to be loaded at once, so that some reads may be refused for a moment.
            demands: Demands { reads: false, ..Demands::NOTHING_FAILS },
            options: SHORT_LIVED,
            shortest: SHORTEST,
            bound: Some(WOKEN),
            ..Fault::new("instance-frozen", "SIGSTOP past all TTLs and leases", |stage| {
                Box::pin(frozen(stage))
            })
        },
        Fault {
            demands: Demands::CACHED_IS_SERVED,
            ..Fault::new("instance-no-files", "no file descriptor left", |stage| {
                Box::pin(no_files(stage))
            })
        },
        Fault {
            demands: Demands::ALL_COMES_BACK,
            ..Fault::new("cold-start", "the whole fleet and an empty Redis", |stage| {
                Box::pin(cold_start(stage))
            })
        },
        Fault {
            options: &["--database-loads", "1", "--database-queued-loads", "0"],
            changed_may_fail: true,
            demands: Demands { refused_within: Some(QUICKLY), ..Demands::CACHED_IS_SERVED },
            ..Fault::new("overload", "more loads than a small budget allows", |stage| {
                Box::pin(overload(stage))
            })
        },
        Fault::new("start-without-redis", "an instance starts, Redis is down", |stage| {
            Box::pin(start_without_redis(stage))
        }),
        Fault {
            demands: Demands::CACHED_IS_SERVED,
            ..Fault::new(
                "start-without-postgres",
                "an instance starts, Postgres is down",
                |stage| Box::pin(start_without_postgres(stage)),
            )
        },
    ]
}

async fn killed(stage: &Stage<'_>) -> Result<(), Error> {
    let victim = stage.victim();
    stage.excuse(0);
    victim.kill().await?;
    stage.prove("its admin port is closed", victim.admin("/livez").await.is_none())?;
    tokio::time::sleep(stage.hold / 2).await;
    victim.start()?;
    victim.serving().await?;
    stage.well();
    tokio::time::sleep(stage.hold / 2).await;
    Ok(())
}

async fn frozen(stage: &Stage<'_>) -> Result<(), Error> {
    let victim = stage.victim();
    let is_frozen = || victim.pid().is_some_and(is_frozen);
    stage.excuse(0);
    victim.signal(Signal::SIGSTOP);
    stage.prove_soon("its process is in state T", async || is_frozen()).await?;
    stage.hold().await;
    stage.prove("to the end", is_frozen())?;
    victim.signal(Signal::SIGCONT);
    victim.serving().await
}

async fn no_files(stage: &Stage<'_>) -> Result<(), Error> {
    let victim = stage.victim();
    let open = open_files(victim);
    limit_files(victim, &format!("{open}:")).await?;
    // Connections that exist are served; these are more than it can accept.
    let mut waiting = Vec::new();
    for _ in 0..CONNECTIONS {
        waiting.push(tokio::net::TcpStream::connect(("127.0.0.1", victim.port)).await);
    }
    stage
        .prove_soon("its log says that it cannot accept", async || {
            victim.log().contains("could not be accepted")
        })
        .await?;
    stage.hold().await;
    drop(waiting);
    limit_files(victim, "4096:").await
}

fn open_files(instance: &Instance) -> usize {
    let pid = instance.pid().unwrap_or_default();
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Sets the soft limit.
async fn limit_files(instance: &Instance, limit: &str) -> Result<(), Error> {
    let pid = instance.pid().unwrap_or_default().to_string();
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &pid, &format!("--nofile={limit}")]);
    let failed = |why: String| Error::Instance(format!("prlimit: {why}"));
    let output = prlimit.output().await.map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

async fn cold_start(stage: &Stage<'_>) -> Result<(), Error> {
    let (redis, _) = stage.redis()?;
    let instances = &stage.world.instances;
    for (index, instance) in instances.iter().enumerate() {
        stage.excuse(index);
        instance.kill().await?;
    }
    redis.kill();
    blocking(|| redis.start_again())?;
    let held = redis.command(&["DBSIZE"])?;
    let none = instances.iter().all(|instance| instance.pid().is_none());
    stage.prove("no instance runs, and Redis holds nothing", none && held == "0")?;
    instances.iter().try_for_each(Instance::start)?;
    for instance in instances {
        instance.serving().await?;
    }
    stage.well();
    stage.hold().await;
    Ok(())
}

async fn overload(stage: &Stage<'_>) -> Result<(), Error> {
    let proxy = &stage.world.to_postgres;
    proxy.delay(Direction::ToClient, if stage.timed { SLOW[0] } else { SLOW[1] });
    let refusals = async || {
        let mut refused = 0.0;
        for instance in &stage.world.instances {
            refused += instance.metric(REFUSED).await.unwrap_or(0.0);
        }
        refused
    };
    stage.hold().await;
    let refused = refusals().await;
    proxy.heal();
    stage.prove(format!("{refused} reads were refused"), refused > 0.0)
}

const REFUSED: &str = "grpc_server_handled_total{grpc_code=\"RESOURCE_EXHAUSTED\",\
    grpc_method=\"GetProduct\",grpc_service=\"hotshelf.v1.ProductService\",grpc_type=\"unary\"}";

async fn start_without_redis(stage: &Stage<'_>) -> Result<(), Error> {
    let ((redis, _), victim) = (stage.redis()?, stage.victim());
    stage.excuse(0);
    victim.kill().await?;
    redis.kill();
    victim.start()?;
    victim.serving().await?;
    let down = redis.pid().is_none();
    stage.prove("it became ready while Redis was down", down)?;
    stage.well();
    stage.hold().await;
    Ok(blocking(|| redis.start_again())?)
}

async fn start_without_postgres(stage: &Stage<'_>) -> Result<(), Error> {
    let (postgres, victim) = (&stage.world.postgres, stage.victim());
    stage.excuse(0);
    victim.kill().await?;
    blocking(|| postgres.kill());
    victim.start()?;
    stage
        .prove_soon("it is alive, not ready, and says why", async || {
            let ready = victim.admin("/readyz").await;
            let says =
                ready.is_some_and(|(status, why)| status == 503 && why.contains("PostgreSQL"));
            says && victim.admin("/livez").await.is_some_and(|(status, _)| status == 200)
        })
        .await?;
    stage.hold().await;
    blocking(|| postgres.start_again())?;
    victim.serving().await
}
