//! A fault of one product, one job, one shard or one caller must not affect the others: besides what every drill demands,
//! memory stays trusted on every instance all the time, and hot products are about as fast as before.

use std::time::{Duration, Instant};

use devstack::Redis;
use hotshelf::proto::Product;
use sqlx::Executor;
use tonic::{Code, Status};

use super::bulk;
use super::cluster::{MASTERS, hottest_shard, master_of, nodes_flagged};
use crate::Error;
use crate::fault::{Demands, Fault};
use crate::instance::Instance;
use crate::products::{Clients, entry_key, held_version, insert};
use crate::scenario::{Scenario, blocking};

const UNAFFECTED: Demands =
    Demands { trusted: true, p99_ratio: Some(2.0), ..Demands::NOTHING_FAILS };

/// Between two changes of a product that the fault does not concern.
const BETWEEN_CHANGES: Duration = Duration::from_millis(100);
const PRODUCTS_OF_A_CATALOGUE: usize = 20;
/// Products enough for each shard to have some.
const OF_ALL_SHARDS: usize = 30;
const CALLERS: usize = 12;
const RELAYED: &str = "hotshelf_relayed_total";
const OTHER_CATALOGUE: &str = "instances on another database use the same Redis and namespace";

pub(super) fn all() -> Vec<Fault> {
    let all = [
        Fault::new("isolation-bad-row", "SQL makes a cached product unreadable", |scenario| {
            Box::pin(bad_row(scenario))
        }),
        Fault {
            options: bulk::OPTIONS,
            ..Fault::new("isolation-bulk", "one UPDATE of 1,000,000 rows", |scenario| {
                Box::pin(bulk::change_all(scenario))
            })
        },
        Fault {
            redis: &[("cluster-require-full-coverage", "no")],
            ..Fault::of_cluster(
                "isolation-shard-dead",
                "a master and its replica killed, the others serve",
                |scenario| Box::pin(shard_dead(scenario)),
            )
        },
        Fault::new(
            "isolation-foreign-fleet",
            "another catalogue in the same namespace",
            |scenario| Box::pin(foreign_fleet(scenario)),
        ),
        Fault::new(
            "isolation-impossible-entry",
            "Redis holds versions that never were",
            |scenario| Box::pin(impossible_entry(scenario)),
        ),
        Fault::new("isolation-held-row", "a row is locked, and 12 callers update it", |scenario| {
            Box::pin(held_row(scenario))
        }),
    ];
    all.map(|fault| Fault { demands: UNAFFECTED, ..fault }).into()
}

/// Changes a product by SQL while the fault is held, and demands that every instance serves each change within `soon`.
pub(super) async fn demand_changes(
    scenario: &Scenario<'_>,
    clients: &Clients,
    product: i64,
) -> Result<(), Error> {
    let (began, mut slowest, mut changes) = (Instant::now(), Duration::ZERO, 0);
    while began.elapsed() < scenario.hold {
        slowest = slowest.max(clients.time_to_serve_change(&scenario.servers.sql, product).await?);
        changes += 1;
        tokio::time::sleep(BETWEEN_CHANGES).await;
    }
    let what = format!("{changes} changes of another product were served within {slowest:?}");
    scenario.demand(what.clone(), slowest <= scenario.soon());
    scenario.prove(what, changes > 0)
}

/// The sum of a metric over the instances.
pub(super) async fn sum(instances: &[Instance], series: &str) -> f64 {
    let mut sum = 0.0;
    for instance in instances {
        sum += instance.metric(series).await.unwrap_or(0.0);
    }
    sum
}

fn is_unreadable(answer: &Result<Product, Status>) -> bool {
    answer.as_ref().is_err_and(|status| status.code() == Code::FailedPrecondition)
}

async fn bad_row(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (sql, instances) = (&scenario.servers.sql, &scenario.servers.instances);
    let (clients, own) = (Clients::of(instances)?, insert(sql, "own", 2).await?);
    let (bad, good) = (own[0], own[1]);
    clients.warm(&own).await?;
    let set = async |time| {
        let update = "UPDATE products SET create_time = $2::text::timestamptz WHERE id = $1";
        sqlx::query(update).bind(bad).bind(time).execute(sql).await
    };
    set("infinity").await?;
    scenario
        .prove_soon("every instance refuses the product as unreadable", async || {
            clients.read(bad).await.iter().all(is_unreadable)
        })
        .await?;
    scenario
        .prove_soon("the relay has removed its entry", async || {
            sum(instances, "hotshelf_relay_set_aside_total").await > 0.0
        })
        .await?;
    demand_changes(scenario, &clients, good).await?;
    demand_relayed(scenario, &clients, good, scenario.redis()?.0).await?;
    let still_refused = clients.read(bad).await.iter().all(is_unreadable);
    scenario.prove("it was refused to the end", still_refused)?;
    set("now").await?;
    scenario
        .prove_soon("mended, it is served again", async || {
            clients.read(bad).await.iter().all(Result::is_ok)
        })
        .await
}

async fn shard_dead(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (cluster, sql) = (scenario.cluster()?, &scenario.servers.sql);
    let (clients, own) =
        (Clients::of(&scenario.servers.instances)?, insert(sql, "own", OF_ALL_SHARDS).await?);
    let dead = master_of(cluster, scenario.products[0])?;
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
    clients.warm(gone).await?;
    clients.warm(&[*product]).await?;
    scenario
        .prove_soon("Redis held a product of another shard", async || {
            blocking(|| held_version(master, *product)).is_some()
        })
        .await?;
    let shard = hottest_shard(scenario)?;
    shard.iter().for_each(|node| node.kill());
    let left = &cluster.nodes()[(dead + 1) % MASTERS];
    scenario
        .prove_soon("the other nodes flag it as failed, and the cluster as up", async || {
            let info = blocking(|| left.command(&["CLUSTER", "INFO"])).unwrap_or_default();
            info.contains("cluster_state:ok") && nodes_flagged(left, "fail") > 0
        })
        .await?;
    let first = clients.read_through(0, *unread).await;
    let tier = first.map(|answer| format!("{:?}", answer.metadata().get("cache-status")));
    let loaded = tier.as_ref().is_ok_and(|tier| tier.contains("detail=postgres"));
    scenario.prove(format!("a product of it is read from Postgres: {tier:?}"), loaded)?;
    let mut slowest = Duration::ZERO;
    for product in gone {
        slowest = slowest.max(clients.time_to_serve_change(sql, *product).await?);
    }
    let what = format!("{} changes of it were served within {slowest:?}", gone.len());
    scenario.demand(what.clone(), slowest <= scenario.soon());
    scenario.prove(what, !gone.is_empty())?;
    demand_changes(scenario, &clients, *product).await?;
    demand_relayed(scenario, &clients, *product, master).await?;
    for node in shard {
        blocking(|| node.start_again())?;
    }
    blocking(|| cluster.wait_until_sound())?;
    Ok(())
}

/// Changes a product by SQL, and demands that the relay soon replaces its entry on this server.
async fn demand_relayed(
    scenario: &Scenario<'_>,
    clients: &Clients,
    product: i64,
    master: &Redis,
) -> Result<(), Error> {
    let before = blocking(|| held_version(master, product));
    let began = Instant::now();
    clients.time_to_serve_change(&scenario.servers.sql, product).await?;
    let instances = &scenario.servers.instances;
    // A newer entry alone proves nothing: an instance that loads the product stores it too.
    let at_first = sum(instances, RELAYED).await;
    let mut relayed = false;
    while !relayed && began.elapsed() < scenario.soon() {
        tokio::time::sleep(BETWEEN_CHANGES / 10).await;
        relayed = sum(instances, RELAYED).await > at_first
            && blocking(|| held_version(master, product)) > before;
    }
    scenario.demand("the relay applied no change of the others in time", relayed);
    let after = blocking(|| held_version(master, product));
    let what = format!(
        "Redis held version {before:?} of another product, and {after:?} {:?} after its change",
        began.elapsed()
    );
    scenario.demand(what.clone(), after > before);
    scenario.prove(what, before.is_some())
}

async fn foreign_fleet(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (servers, instances) = (scenario.servers, &scenario.servers.instances);
    servers.sql.execute("CREATE DATABASE another").await?;
    servers.attach_in("another")?;
    let url = servers.postgres.url_of("another");
    let foreign = servers.instance_on(&url);
    foreign.start()?;
    foreign.serving().await?;
    let (clients, foreign_clients) = (Clients::of(instances)?, Clients::of([&foreign])?);
    let own = insert(&servers.sql, "own", PRODUCTS_OF_A_CATALOGUE).await?;
    // The other catalogue has the same ids: those of `own`, and those of the load.
    let sql = crate::servers::connect(&url, 1).await?;
    let ids: Vec<i64> = own.iter().chain(&scenario.products).copied().collect();
    let insert = "INSERT INTO products (id, name, price) SELECT id, 'foreign', 1 FROM unnest($1::bigint[]) AS id";
    sqlx::query(insert).bind(&ids).execute(&sql).await?;
    let hot = &ids[..2 * PRODUCTS_OF_A_CATALOGUE];
    clients.warm(&own).await?;
    foreign_clients.warm(hot).await?;
    scenario
        .prove_soon("every instance has found one other catalogue", async || {
            let found = sum(instances, "hotshelf_redis_other_catalogues").await;
            let by_foreign = foreign.metric("hotshelf_redis_other_catalogues").await;
            (found - instances.len() as f64).abs() < 0.5 && by_foreign == Some(1.0)
        })
        .await?;
    let is_named = |answers: Vec<Result<Product, Status>>, name: &str| {
        answers.iter().all(|answer| answer.as_ref().is_ok_and(|product| product.name == name))
    };
    let (began, mut reads, mut mixed) = (Instant::now(), 0, 0);
    while began.elapsed() < scenario.hold {
        for (product, others) in own.iter().zip(hot) {
            clients.time_to_serve_change(&servers.sql, *product).await?;
            foreign_clients.time_to_serve_change(&sql, *others).await?;
            mixed += usize::from(!is_named(clients.read(*product).await, "own"));
            mixed += usize::from(!is_named(foreign_clients.read(*others).await, "foreign"));
            reads += 2;
        }
        for product in hot {
            mixed += usize::from(!is_named(foreign_clients.read(*product).await, "foreign"));
            reads += 1;
        }
    }
    scenario.demand(format!("{mixed} of {reads} reads gave the other catalogue's"), mixed == 0);
    let lines = |instance: &Instance| {
        let log = instance.log();
        log.lines().filter(|line| line.contains("ERROR") && line.contains(OTHER_CATALOGUE)).count()
    };
    let logged: Vec<usize> = instances.iter().map(lines).collect();
    scenario.demand(
        format!("ERROR lines about it: {logged:?}, not one each"),
        logged.iter().all(|n| *n == 1),
    );
    scenario.prove(format!("{reads} products of both were read"), reads > 0)?;
    foreign.kill().await
}

/// The entry as hexadecimal digits, because devstack reads replies as text.
const READ: &str = "return (redis.call('GET', KEYS[1]):gsub('.', function(c) return ('%02x'):format(c:byte()) end))";
const WRITE: &str = "return redis.call('SET', KEYS[1], (ARGV[1]:gsub('..', function(h) return string.char(tonumber(h, 16)) end)), 'PX', 600000)";
/// Bytes of the header of an entry: the version begins at 2, the checksum is at the end.
const HEADER: usize = 30;
const CHECKSUM_AT: usize = 26;
const REAL: &str = "real-name";
const FORGED: &str = "evil-name";

/// Replaces the entry of a product by one with a valid checksum, another name, and a version that the sequence never gave out.
fn forge(redis: &Redis, product: i64) -> Result<Option<i64>, Error> {
    let Some(key) = entry_key(redis, product) else { return Ok(None) };
    let held = redis.command(&["EVAL", READ, "1", &key])?;
    let digits = held.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair));
    let mut bytes: Vec<u8> = digits.filter_map(|pair| u8::from_str_radix(&pair, 16).ok()).collect();
    let at = bytes.windows(REAL.len()).position(|part| part == REAL.as_bytes());
    let Some(at) = at.filter(|at| *at > HEADER) else { return Ok(None) };
    bytes[at..at + REAL.len()].copy_from_slice(FORGED.as_bytes());
    bytes[2..10].copy_from_slice(&(1_i64 << 40).to_be_bytes());
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&bytes[..CHECKSUM_AT]);
    checksum.update(&bytes[HEADER..]);
    bytes[CHECKSUM_AT..HEADER].copy_from_slice(&checksum.finalize().to_be_bytes());
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    redis.command(&["EVAL", WRITE, "1", &key, &digits])?;
    Ok(held_version(redis, product))
}

async fn impossible_entry(scenario: &Scenario<'_>) -> Result<(), Error> {
    let ((redis, _), sql, instances) =
        (scenario.redis()?, &scenario.servers.sql, &scenario.servers.instances);
    let clients = Clients::of(instances)?;
    let (began, mut forged, mut served, mut left, mut slowest) =
        (Instant::now(), 0, 0, 0, Duration::ZERO);
    while began.elapsed() < scenario.hold {
        let product = insert(sql, REAL, 1).await?[0];
        // The first instance stores it in Redis; no other instance has read it.
        let mut version = None;
        while version.is_none() && began.elapsed() < 2 * scenario.bound {
            let _ = clients.read_through(0, product).await;
            version = blocking(|| forge(redis, product))?;
        }
        forged += usize::from(version.is_some());
        let is_forged = |answer: &Result<Product, Status>| {
            answer.as_ref().is_ok_and(|product| product.name == FORGED)
        };
        served += clients.read(product).await.iter().filter(|answer| is_forged(answer)).count();
        left += usize::from(blocking(|| held_version(redis, product)) == version);
        blocking(|| forge(redis, product))?;
        slowest = slowest.max(clients.time_to_serve_change(sql, product).await?);
        blocking(|| forge(redis, product))?;
        let written = clients.update(instances.len() - 1, product, 7).await;
        let written = written.map_err(|status| Error::Instance(status.to_string()))?;
        slowest = slowest.max(clients.time_to_serve(product, written, Instant::now()).await?);
        served += clients.read(product).await.iter().filter(|answer| is_forged(answer)).count();
        tokio::time::sleep(BETWEEN_CHANGES).await;
    }
    let found = sum(instances, "hotshelf_redis_impossible_total").await;
    scenario.demand(format!("{served} reads gave an entry that was forged"), served == 0);
    scenario.demand(format!("{left} forged entries were left in Redis"), left == 0);
    let what = format!(
        "{forged} products had forged entries, {found} were found, changes of them served within {slowest:?}"
    );
    scenario.demand(what.clone(), slowest <= scenario.soon());
    scenario.prove(what, forged > 0 && found > 0.0)
}

async fn held_row(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (sql, clients) = (&scenario.servers.sql, Clients::of(&scenario.servers.instances)?);
    let own = insert(sql, "own", 2).await?;
    let (held, other) = (own[0], own[1]);
    clients.warm(&own).await?;
    let mut lock = sql.begin().await?;
    sqlx::query("SELECT FROM products WHERE id = $1 FOR UPDATE")
        .bind(held)
        .execute(&mut *lock)
        .await?;
    let instances = scenario.servers.instances.len();
    let began = Instant::now();
    // The results of these calls do not matter: they may wait, or fail by their deadline.
    let callers = futures_util::future::join_all((0..CALLERS).map(async |caller| {
        while began.elapsed() < scenario.hold {
            if clients.update(caller % instances, held, 7).await.is_err() {
                tokio::time::sleep(BETWEEN_CHANGES).await;
            }
        }
    }));
    let hold = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        scenario
            .prove_soon("updates wait for the row", async || {
                let waiting = sqlx::query_scalar(waiting).fetch_one(sql).await;
                waiting.is_ok_and(|waiting: i64| waiting > 0)
            })
            .await?;
        demand_changes(scenario, &clients, other).await?;
        for instance in 0..instances {
            let sent = Instant::now();
            let done = clients.update(instance, other, 7).await.is_ok();
            let what =
                format!("UpdateProduct of another product: {done} after {:?}", sent.elapsed());
            scenario.demand(what, done && sent.elapsed() <= scenario.soon());
        }
        Ok::<(), Error>(lock.rollback().await?)
    };
    let ((), done) = tokio::join!(async { drop(callers.await) }, hold);
    done
}
