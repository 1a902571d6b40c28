//! One product, one job, one shard or one caller is in trouble, and the others must not notice: besides what every drill
//! demands, memory stays trusted on every instance all the time, and hot products are about as fast as before.

use std::time::{Duration, Instant};

use devstack::Redis;
use hotshelf::proto::Product;
use sqlx::Executor;
use tonic::{Code, Status};

use super::bulk;
use super::cluster::{MASTERS, hottest_shard, master_of, said_of};
use crate::Error;
use crate::fault::{Demands, Fault};
use crate::instance::Instance;
use crate::products::{Fleet, entry_key, held_version, insert};
use crate::stage::{Stage, blocking};

const UNNOTICED: Demands =
    Demands { trusted: true, p99_ratio: Some(2.0), ..Demands::NOTHING_FAILS };

/// Between changes that are made beside the fault.
const BETWEEN_CHANGES: Duration = Duration::from_millis(100);
const LOOKED_AT: usize = 20;
/// Enough for each shard to have some.
const OF_ALL_SHARDS: usize = 30;
const CALLERS: usize = 12;
const RELAYED: &str = "hotshelf_relayed_total";
const OTHER_CATALOGUE: &str = "instances on another database use the same Redis and namespace";

pub(super) fn all() -> Vec<Fault> {
    let all = [
        Fault::new("isolation-bad-row", "SQL makes a cached product unreadable", |stage| {
            Box::pin(bad_row(stage))
        }),
        Fault::new("isolation-bulk", "one UPDATE of 1,000,000 rows", |stage| {
            Box::pin(bulk::change_all(stage))
        }),
        Fault {
            redis: &[("cluster-require-full-coverage", "no")],
            ..Fault::of_cluster(
                "isolation-shard-dead",
                "a master and its replica killed, the others serve",
                |stage| Box::pin(shard_dead(stage)),
            )
        },
        Fault::new("isolation-foreign-fleet", "another catalogue in the same namespace", |stage| {
            Box::pin(foreign_fleet(stage))
        }),
        Fault::new("isolation-impossible-entry", "Redis holds versions that never were", |stage| {
            Box::pin(impossible_entry(stage))
        }),
        Fault::new("isolation-held-row", "a row is locked, and 12 callers update it", |stage| {
            Box::pin(held_row(stage))
        }),
    ];
    all.map(|fault| Fault { demands: UNNOTICED, ..fault }).into()
}

/// Changes a product by SQL again and again while the fault is held, and demands that every instance soon serves each change.
pub(super) async fn demand_changes(
    stage: &Stage<'_>,
    fleet: &Fleet,
    product: i64,
) -> Result<(), Error> {
    let (began, mut slowest, mut changes) = (Instant::now(), Duration::ZERO, 0);
    while began.elapsed() < stage.hold {
        slowest = slowest.max(fleet.time_to_serve_change(&stage.world.sql, product).await?);
        changes += 1;
        tokio::time::sleep(BETWEEN_CHANGES).await;
    }
    let what = format!("{changes} changes of another product were served within {slowest:?}");
    stage.demand(what.clone(), slowest <= stage.soon());
    stage.prove(what, changes > 0)
}

/// The sum of a series over the instances.
async fn sum(instances: &[Instance], series: &str) -> f64 {
    let mut sum = 0.0;
    for instance in instances {
        sum += instance.metric(series).await.unwrap_or(0.0);
    }
    sum
}

fn is_unreadable(answer: &Result<Product, Status>) -> bool {
    answer.as_ref().is_err_and(|status| status.code() == Code::FailedPrecondition)
}

async fn bad_row(stage: &Stage<'_>) -> Result<(), Error> {
    let (sql, instances) = (&stage.world.sql, &stage.world.instances);
    let (fleet, own) = (Fleet::of(instances)?, insert(sql, "own", 2).await?);
    let (bad, good) = (own[0], own[1]);
    fleet.warm(&own).await?;
    let set = async |time| {
        let update = "UPDATE products SET create_time = $2::text::timestamptz WHERE id = $1";
        sqlx::query(update).bind(bad).bind(time).execute(sql).await
    };
    set("infinity").await?;
    stage
        .prove_soon("every instance refuses the product as unreadable", async || {
            fleet.read(bad).await.iter().all(is_unreadable)
        })
        .await?;
    stage
        .prove_soon("the relay has removed its entry", async || {
            sum(instances, "hotshelf_relay_set_aside_total").await > 0.0
        })
        .await?;
    demand_changes(stage, &fleet, good).await?;
    demand_relayed(stage, &fleet, good, stage.redis()?.0).await?;
    let lasted = fleet.read(bad).await.iter().all(is_unreadable);
    stage.prove("it was refused to the end", lasted)?;
    set("now").await?;
    stage
        .prove_soon("mended, it is served again", async || {
            fleet.read(bad).await.iter().all(Result::is_ok)
        })
        .await
}

async fn shard_dead(stage: &Stage<'_>) -> Result<(), Error> {
    let (cluster, sql) = (stage.cluster()?, &stage.world.sql);
    let (fleet, own) =
        (Fleet::of(&stage.world.instances)?, insert(sql, "own", OF_ALL_SHARDS).await?);
    let dead = master_of(cluster, stage.products[0])?;
    let (mut gone, mut alive) = (Vec::new(), Vec::new());
    for product in own {
        match master_of(cluster, product)? {
            place if place == dead => gone.push(product),
            place => alive.push((product, &cluster.nodes()[place])),
        }
    }
    let (Some((unread, gone)), Some((product, master))) = (gone.split_first(), alive.first())
    else {
        return Err(Error::NotProven("products of every shard".to_owned()));
    };
    fleet.warm(gone).await?;
    fleet.warm(&[*product]).await?;
    stage
        .prove_soon("Redis held a product of another shard", async || {
            blocking(|| held_version(master, *product)).is_some()
        })
        .await?;
    let shard = hottest_shard(stage)?;
    shard.iter().for_each(|node| node.kill());
    let left = &cluster.nodes()[(dead + 1) % MASTERS];
    stage
        .prove_soon("the others say that it failed, and that the cluster is up", async || {
            let info = blocking(|| left.command(&["CLUSTER", "INFO"])).unwrap_or_default();
            info.contains("cluster_state:ok") && said_of(left, "fail") > 0
        })
        .await?;
    let first = fleet.read_through(0, *unread).await;
    let tier = first.map(|answer| format!("{:?}", answer.metadata().get("cache-status")));
    let loaded = tier.as_ref().is_ok_and(|tier| tier.contains("detail=postgres"));
    stage.prove(format!("a product of it is read from Postgres: {tier:?}"), loaded)?;
    let mut slowest = Duration::ZERO;
    for product in gone {
        slowest = slowest.max(fleet.time_to_serve_change(sql, *product).await?);
    }
    let what = format!("{} changes of it were served within {slowest:?}", gone.len());
    stage.demand(what.clone(), slowest <= stage.soon());
    stage.prove(what, !gone.is_empty())?;
    demand_changes(stage, &fleet, *product).await?;
    demand_relayed(stage, &fleet, *product, master).await?;
    for node in shard {
        blocking(|| node.start_again())?;
    }
    blocking(|| cluster.wait_until_sound())?;
    Ok(())
}

/// Changes a product by SQL, and demands that its server soon holds that.
async fn demand_relayed(
    stage: &Stage<'_>,
    fleet: &Fleet,
    product: i64,
    master: &Redis,
) -> Result<(), Error> {
    let before = blocking(|| held_version(master, product));
    let began = Instant::now();
    fleet.time_to_serve_change(&stage.world.sql, product).await?;
    let instances = &stage.world.instances;
    // The entry alone says little: an instance that loads it again stores it too.
    let at_first = sum(instances, RELAYED).await;
    let mut relayed = false;
    while !relayed && began.elapsed() < stage.soon() {
        tokio::time::sleep(BETWEEN_CHANGES / 10).await;
        relayed = sum(instances, RELAYED).await > at_first
            && blocking(|| held_version(master, product)) > before;
    }
    stage.demand("the relay applied no change of the others in time", relayed);
    let after = blocking(|| held_version(master, product));
    let what = format!(
        "Redis held version {before:?} of another product, and {after:?} {:?} after its change",
        began.elapsed()
    );
    stage.demand(what.clone(), after > before);
    stage.prove(what, before.is_some())
}

async fn foreign_fleet(stage: &Stage<'_>) -> Result<(), Error> {
    let (world, instances) = (stage.world, &stage.world.instances);
    world.sql.execute("CREATE DATABASE another").await?;
    let url = world.postgres.url_of("another");
    let stranger = world.instance_on(&url);
    stranger.start()?;
    stranger.serving().await?;
    let (ours, theirs) = (Fleet::of(instances)?, Fleet::of([&stranger])?);
    let own = insert(&world.sql, "ours", LOOKED_AT).await?;
    // The same ids: theirs are their own, and those of the load.
    let sql = crate::world::connect(&url, 1).await?;
    let ids: Vec<i64> = own.iter().chain(&stage.products).copied().collect();
    let insert = "INSERT INTO products (id, name, price) SELECT id, 'theirs', 1 FROM unnest($1::bigint[]) AS id";
    sqlx::query(insert).bind(&ids).execute(&sql).await?;
    let hot = &ids[..2 * LOOKED_AT];
    ours.warm(&own).await?;
    theirs.warm(hot).await?;
    stage
        .prove_soon("every instance has met one other catalogue", async || {
            let met = sum(instances, "hotshelf_redis_other_catalogues").await;
            let theirs = stranger.metric("hotshelf_redis_other_catalogues").await;
            (met - instances.len() as f64).abs() < 0.5 && theirs == Some(1.0)
        })
        .await?;
    let is_named = |answers: Vec<Result<Product, Status>>, name: &str| {
        answers.iter().all(|answer| answer.as_ref().is_ok_and(|product| product.name == name))
    };
    let (began, mut reads, mut mixed) = (Instant::now(), 0, 0);
    while began.elapsed() < stage.hold {
        for (product, others) in own.iter().zip(hot) {
            ours.time_to_serve_change(&world.sql, *product).await?;
            theirs.time_to_serve_change(&sql, *others).await?;
            mixed += usize::from(!is_named(ours.read(*product).await, "ours"));
            mixed += usize::from(!is_named(theirs.read(*others).await, "theirs"));
            reads += 2;
        }
        for product in hot {
            mixed += usize::from(!is_named(theirs.read(*product).await, "theirs"));
            reads += 1;
        }
    }
    stage.demand(format!("{mixed} of {reads} reads gave the other catalogue's"), mixed == 0);
    let lines = |instance: &Instance| {
        let log = instance.log();
        log.lines().filter(|line| line.contains("ERROR") && line.contains(OTHER_CATALOGUE)).count()
    };
    let said: Vec<usize> = instances.iter().map(lines).collect();
    stage.demand(
        format!("ERROR lines about it: {said:?}, not one each"),
        said.iter().all(|n| *n == 1),
    );
    stage.prove(format!("{reads} products of both were read"), reads > 0)?;
    stranger.kill().await
}

/// The entry as hexadecimal digits: what devstack reads is text.
const READ: &str = "return (redis.call('GET', KEYS[1]):gsub('.', function(c) return ('%02x'):format(c:byte()) end))";
const WRITE: &str = "return redis.call('SET', KEYS[1], (ARGV[1]:gsub('..', function(h) return string.char(tonumber(h, 16)) end)), 'PX', 600000)";
/// The head of an entry: the version is at 2, the checksum at the end.
const HEAD: usize = 30;
const CHECKSUM_AT: usize = 26;
const REAL: &str = "real-name";
const FORGED: &str = "evil-name";

/// Replaces the entry of a product by one with a valid checksum, other content, and a version that was never given out.
fn forge(redis: &Redis, product: i64) -> Result<Option<i64>, Error> {
    let Some(key) = entry_key(redis, product) else { return Ok(None) };
    let held = redis.command(&["EVAL", READ, "1", &key])?;
    let digits = held.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair));
    let mut bytes: Vec<u8> = digits.filter_map(|pair| u8::from_str_radix(&pair, 16).ok()).collect();
    let at = bytes.windows(REAL.len()).position(|part| part == REAL.as_bytes());
    let Some(at) = at.filter(|at| *at > HEAD) else { return Ok(None) };
    bytes[at..at + REAL.len()].copy_from_slice(FORGED.as_bytes());
    bytes[2..10].copy_from_slice(&(1_i64 << 40).to_be_bytes());
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&bytes[..CHECKSUM_AT]);
    checksum.update(&bytes[HEAD..]);
    bytes[CHECKSUM_AT..HEAD].copy_from_slice(&checksum.finalize().to_be_bytes());
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    redis.command(&["EVAL", WRITE, "1", &key, &digits])?;
    Ok(held_version(redis, product))
}

async fn impossible_entry(stage: &Stage<'_>) -> Result<(), Error> {
    let ((redis, _), sql, instances) = (stage.redis()?, &stage.world.sql, &stage.world.instances);
    let fleet = Fleet::of(instances)?;
    let (began, mut forged, mut served, mut left, mut slowest) =
        (Instant::now(), 0, 0, 0, Duration::ZERO);
    while began.elapsed() < stage.hold {
        let product = insert(sql, REAL, 1).await?[0];
        // Redis gets it from the first instance, and none of the others has seen it.
        let mut version = None;
        while version.is_none() && began.elapsed() < 2 * stage.bound {
            let _ = fleet.read_through(0, product).await;
            version = blocking(|| forge(redis, product))?;
        }
        forged += usize::from(version.is_some());
        let is_forged = |answer: &Result<Product, Status>| {
            answer.as_ref().is_ok_and(|product| product.name == FORGED)
        };
        served += fleet.read(product).await.iter().filter(|answer| is_forged(answer)).count();
        left += usize::from(blocking(|| held_version(redis, product)) == version);
        blocking(|| forge(redis, product))?;
        slowest = slowest.max(fleet.time_to_serve_change(sql, product).await?);
        blocking(|| forge(redis, product))?;
        let written = fleet.update(instances.len() - 1, product, 7).await;
        let written = written.map_err(|status| Error::Instance(status.to_string()))?;
        slowest = slowest.max(fleet.time_to_serve(product, written, Instant::now()).await?);
        served += fleet.read(product).await.iter().filter(|answer| is_forged(answer)).count();
        tokio::time::sleep(BETWEEN_CHANGES).await;
    }
    let found = sum(instances, "hotshelf_redis_impossible_total").await;
    stage.demand(format!("{served} reads gave an entry that was forged"), served == 0);
    stage.demand(format!("{left} forged entries were left in Redis"), left == 0);
    let what = format!(
        "{forged} products had forged entries, {found} were found, changes of them served within {slowest:?}"
    );
    stage.demand(what.clone(), slowest <= stage.soon());
    stage.prove(what, forged > 0 && found > 0.0)
}

async fn held_row(stage: &Stage<'_>) -> Result<(), Error> {
    let (sql, fleet) = (&stage.world.sql, Fleet::of(&stage.world.instances)?);
    let own = insert(sql, "own", 2).await?;
    let (held, other) = (own[0], own[1]);
    fleet.warm(&own).await?;
    let mut lock = sql.begin().await?;
    sqlx::query("SELECT FROM products WHERE id = $1 FOR UPDATE")
        .bind(held)
        .execute(&mut *lock)
        .await?;
    let instances = stage.world.instances.len();
    let began = Instant::now();
    // What becomes of these calls says nothing: they may fail by their deadline, or wait.
    let callers = futures_util::future::join_all((0..CALLERS).map(async |caller| {
        while began.elapsed() < stage.hold {
            if fleet.update(caller % instances, held, 7).await.is_err() {
                tokio::time::sleep(BETWEEN_CHANGES).await;
            }
        }
    }));
    let hold = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        stage
            .prove_soon("updates wait for the row", async || {
                let waiting = sqlx::query_scalar(waiting).fetch_one(sql).await;
                waiting.is_ok_and(|waiting: i64| waiting > 0)
            })
            .await?;
        demand_changes(stage, &fleet, other).await?;
        for instance in 0..instances {
            let sent = Instant::now();
            let done = fleet.update(instance, other, 7).await.is_ok();
            let what =
                format!("UpdateProduct of another product: {done} after {:?}", sent.elapsed());
            stage.demand(what, done && sent.elapsed() <= stage.soon());
        }
        Ok::<(), Error>(lock.rollback().await?)
    };
    let ((), done) = tokio::join!(async { drop(callers.await) }, hold);
    done
}
