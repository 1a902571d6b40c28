//! Faults of hotshelf itself: crashes, pauses, starts without Redis or Postgres, overload.

use std::fs;
use std::time::Duration;

use devstack::Direction;
use nix::sys::signal::Signal;
use tokio::process::Command;

use super::isolation::sum;
use crate::Error;
use crate::fault::{Demands, Fault};
use crate::instance::{Instance, is_frozen};
use crate::scenario::{Scenario, blocking};

/// Delay of Postgres with which one load at a time cannot keep up: in the full plan, and in the plans with fewer reads.
const SLOW: [Duration; 2] = [Duration::from_millis(60), Duration::from_millis(250)];
/// A refusal needs no I/O; the rest is allowance for a busy machine.
const QUICKLY: Duration = Duration::from_millis(100);
/// More connections than the instance has file descriptors left.
const CONNECTIONS: usize = 8;

/// The pause is longer than all of these.
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

/// How old a plain read may be after the pause: 1 s by the options, and the time of a read.
const RESUMED: Duration = Duration::from_secs(3);
/// Longer than `RESUMED`, so that every entry that the instance held is too old.
const SHORTEST: Duration = Duration::from_secs(6);

pub(super) fn all() -> Vec<Fault> {
    vec![
        Fault::new("instance-killed", "kill -9, and a new one", |scenario| {
            Box::pin(killed(scenario))
        }),
        Fault {
            // All its entries have expired and are loaded at the same time, so that some reads may be refused.
            demands: Demands { reads: false, ..Demands::NOTHING_FAILS },
            options: SHORT_LIVED,
            shortest: SHORTEST,
            bound: Some(RESUMED),
            ..Fault::new("instance-frozen", "SIGSTOP past all TTLs and leases", |scenario| {
                Box::pin(frozen(scenario))
            })
        },
        Fault {
            demands: Demands::CACHED_IS_SERVED,
            ..Fault::new("instance-no-files", "no file descriptor left", |scenario| {
                Box::pin(no_files(scenario))
            })
        },
        Fault {
            demands: Demands::ALL_COMES_BACK,
            ..Fault::new("cold-start", "the whole fleet and an empty Redis", |scenario| {
                Box::pin(cold_start(scenario))
            })
        },
        Fault {
            options: &["--database-loads", "1", "--database-queued-loads", "0"],
            changed_may_fail: true,
            demands: Demands { refused_within: Some(QUICKLY), ..Demands::CACHED_IS_SERVED },
            ..Fault::new("overload", "more loads than a small budget allows", |scenario| {
                Box::pin(overload(scenario))
            })
        },
        Fault::new("start-without-redis", "an instance starts, Redis is down", |scenario| {
            Box::pin(start_without_redis(scenario))
        }),
        Fault {
            demands: Demands::CACHED_IS_SERVED,
            ..Fault::new(
                "start-without-postgres",
                "an instance starts, Postgres is down",
                |scenario| Box::pin(start_without_postgres(scenario)),
            )
        },
    ]
}

async fn killed(scenario: &Scenario<'_>) -> Result<(), Error> {
    let victim = scenario.victim();
    scenario.allow_failures(0);
    victim.kill().await?;
    scenario.prove("its admin port is closed", victim.admin("/livez").await.is_none())?;
    tokio::time::sleep(scenario.hold / 2).await;
    victim.start()?;
    victim.serving().await?;
    scenario.end_allowances();
    tokio::time::sleep(scenario.hold / 2).await;
    Ok(())
}

async fn frozen(scenario: &Scenario<'_>) -> Result<(), Error> {
    let victim = scenario.victim();
    let is_frozen = || victim.pid().is_some_and(is_frozen);
    scenario.allow_failures(0);
    victim.signal(Signal::SIGSTOP);
    scenario.prove_soon("its process is in state T", async || is_frozen()).await?;
    scenario.hold().await;
    scenario.prove("to the end", is_frozen())?;
    victim.signal(Signal::SIGCONT);
    victim.serving().await
}

async fn no_files(scenario: &Scenario<'_>) -> Result<(), Error> {
    let victim = scenario.victim();
    let open = open_files(victim);
    limit_files(victim, &format!("{open}:")).await?;
    // Existing connections are served; these are more than the instance can accept.
    let mut waiting = Vec::new();
    for _ in 0..CONNECTIONS {
        waiting.push(tokio::net::TcpStream::connect(("127.0.0.1", victim.port)).await);
    }
    scenario
        .prove_soon("it logs that a connection could not be accepted", async || {
            victim.log().contains("could not be accepted")
        })
        .await?;
    scenario.hold().await;
    drop(waiting);
    limit_files(victim, "4096:").await
}

fn open_files(instance: &Instance) -> usize {
    let pid = instance.pid().unwrap_or_default();
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Sets the soft limit of open files.
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

async fn cold_start(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (redis, _) = scenario.redis()?;
    let instances = &scenario.servers.instances;
    for (index, instance) in instances.iter().enumerate() {
        scenario.allow_failures(index);
        instance.kill().await?;
    }
    redis.kill();
    blocking(|| redis.start_again())?;
    let held = redis.command(&["DBSIZE"])?;
    let none = instances.iter().all(|instance| instance.pid().is_none());
    scenario.prove("no instance runs, and Redis holds nothing", none && held == "0")?;
    instances.iter().try_for_each(Instance::start)?;
    for instance in instances {
        instance.serving().await?;
    }
    scenario.end_allowances();
    scenario.hold().await;
    Ok(())
}

async fn overload(scenario: &Scenario<'_>) -> Result<(), Error> {
    let proxy = &scenario.servers.to_postgres;
    proxy.delay(Direction::ToClient, if scenario.timed { SLOW[0] } else { SLOW[1] });
    scenario.hold().await;
    let refused = sum(&scenario.servers.instances, REFUSED).await;
    proxy.heal();
    scenario.prove(format!("{refused} reads were refused"), refused > 0.0)
}

const REFUSED: &str = "grpc_server_handled_total{grpc_code=\"ResourceExhausted\",\
    grpc_method=\"GetProduct\",grpc_service=\"hotshelf.v1.ProductService\",grpc_type=\"unary\"}";

async fn start_without_redis(scenario: &Scenario<'_>) -> Result<(), Error> {
    let ((redis, _), victim) = (scenario.redis()?, scenario.victim());
    scenario.allow_failures(0);
    victim.kill().await?;
    redis.kill();
    victim.start()?;
    victim.serving().await?;
    let down = redis.pid().is_none();
    scenario.prove("it became ready while Redis was down", down)?;
    scenario.end_allowances();
    scenario.hold().await;
    Ok(blocking(|| redis.start_again())?)
}

async fn start_without_postgres(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (postgres, victim) = (&scenario.servers.postgres, scenario.victim());
    scenario.allow_failures(0);
    victim.kill().await?;
    blocking(|| postgres.kill());
    victim.start()?;
    scenario
        .prove_soon("it is live, not ready, and /readyz names PostgreSQL", async || {
            let ready = victim.admin("/readyz").await;
            let explained =
                ready.is_some_and(|(status, body)| status == 503 && body.contains("PostgreSQL"));
            explained && victim.admin("/livez").await.is_some_and(|(status, _)| status == 200)
        })
        .await?;
    scenario.hold().await;
    blocking(|| postgres.start_again())?;
    victim.serving().await
}
