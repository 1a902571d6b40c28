//! Reads that Redis or Postgres answers, one key compared with many, and large catalogues.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Result, ensure};
use rand::RngExt;

use crate::backends::{self, SAMPLE};
use crate::cores::{Cores, Halves};
use crate::h2load::Shape;
use crate::keys::Keys;
use crate::load::Load;
use crate::measure::{Contender, interleaved};
use crate::redis_load::RedisGets;
use crate::report::{REQUESTS, Section};
use crate::server::Server;
use crate::setup::Setup;

const MANY: Shape = Shape { connections: 8, streams: 32 };
const ONE: Shape = Shape { connections: 1, streams: 1 };

/// First id and number of products that only Postgres has. Each is read once before any is read again.
const UNREAD: (i64, i64) = (2_000_000, 200_000);

fn contender(label: &str, server: &Server, ids: &Arc<[i64]>, shape: Shape) -> Contender {
    pinned(label, server, ids, shape, &Cores::default())
}

/// With the load on these cores.
fn pinned(
    label: &str,
    server: &Server,
    ids: &Arc<[i64]>,
    shape: Shape,
    cores: &Cores,
) -> Contender {
    let (ids, cores, next) = (Arc::clone(ids), cores.clone(), Arc::new(AtomicU64::new(0)));
    let load = Load::Keys(Keys { port: server.port, ids, shape, cores, next });
    Contender { label: label.to_owned(), pids: vec![server.pid], load }
}

/// All calls read one product, compared with calls that each read another one.
pub(crate) async fn one_key(setup: &Setup) -> Result<Vec<Section>> {
    let Halves { servers, load } = &setup.halves;
    let hotshelf = setup.backends.hotshelf_on(servers, &[]).await?;
    let ids: Vec<i64> = (1..=SAMPLE).collect();
    backends::read(hotshelf.port, &ids).await?;
    let one = backends::shuffled([setup.typical()?.id].into_iter());
    let all = backends::shuffled(ids.into_iter());
    let contenders = [
        pinned("one key", &hotshelf, &one, MANY, load),
        pinned("uniform keys", &hotshelf, &all, MANY, load),
    ];
    Ok(vec![Section {
        key: "keys".to_owned(),
        title: format!("GetProduct of one product, and of {SAMPLE}, hot, {MANY}"),
        text: format!(
            "By the benchmark's own load generator, because h2load sends one body only. {}",
            setup.halves.note()
        ),
        rows: interleaved(setup.effort, &contenders).await?,
        against: vec!["uniform keys"],
        columns: REQUESTS,
    }])
}

/// In a namespace of its own: otherwise its refresh would load what is hot in the other instances, and could not keep it.
const ONE_PRODUCT: [&str; 6] =
    ["--hot-capacity", "1", "--soft-ttl", "1h", "--redis-namespace", "one_product"];

/// An instance whose memory holds one product, so that Redis answers.
async fn with_one_product(setup: &Setup) -> Result<Server> {
    let server = setup.backends.hotshelf(&ONE_PRODUCT).await?;
    let ids: Vec<i64> = (1..=SAMPLE).collect();
    backends::read(server.port, &ids).await?;
    Ok(server)
}

/// Hits in Redis.
pub(crate) async fn redis(setup: &Setup) -> Result<Vec<Section>> {
    let hotshelf = with_one_product(setup).await?;
    let ordinary = setup.backends.baseline("ordinary-redis", &setup.products).await?;
    let all = backends::shuffled(1..=SAMPLE);
    let ids: Vec<i64> = (1..=SAMPLE).collect();
    let before = backends::served_by(&hotshelf).await?;
    let mut sections = Vec::new();
    for shape in [MANY, ONE] {
        let in_flight = shape.connections * shape.streams;
        let gets = RedisGets::connect(&setup.backends.redis.url(), &ids, in_flight).await?;
        let contenders = [
            contender("hotshelf", &hotshelf, &all, shape),
            contender("ordinary", &ordinary, &all, shape),
            Contender {
                label: "bare GET".to_owned(),
                pids: Vec::new(),
                load: Load::RedisGets(gets),
            },
        ];
        sections.push(Section {
            key: format!("redis {shape}"),
            title: format!("GetProduct, from Redis, {shape}"),
            text: format!(
                "Products that memory does not hold, uniform keys; `ordinary` is tonic, fred and prost; `bare GET` is \
                 the client alone, in the load generator, {in_flight} at once. CPU without that of Redis."
            ),
            rows: interleaved(setup.effort, &contenders).await?,
            against: vec!["ordinary"],
            columns: REQUESTS,
        });
    }
    let [hot, from_redis, postgres] = since(before, backends::served_by(&hotshelf).await?);
    let share = from_redis / (hot + from_redis + postgres);
    ensure!(share > 0.95, "only {share:.2} of the reads were answered by Redis");
    Ok(sections)
}

fn since(before: [f64; 3], after: [f64; 3]) -> [f64; 3] {
    std::array::from_fn(|tier| after[tier] - before[tier])
}

/// Reads that memory, Redis or Postgres answers.
pub(crate) async fn hit_ratios(setup: &Setup) -> Result<Vec<Section>> {
    let sql = setup.backends.sql(&setup.backends.postgres.url()).await?;
    backends::add_products(&sql, UNREAD.0, UNREAD.1).await?;
    let unread = backends::shuffled(UNREAD.0..UNREAD.0 + UNREAD.1);
    let (half, none) =
        (setup.backends.hotshelf(&TWO_HUNDRED_PRODUCTS).await?, with_one_product(setup).await?);
    let mixed = half_from_memory(&setup.products.iter().map(|one| one.id).collect::<Vec<i64>>());
    let hotshelf = &setup.servers.hotshelf;
    let contenders = [
        contender("all from memory", hotshelf, &backends::shuffled(1..=SAMPLE), MANY),
        contender("half from memory, half from Redis", &half, &mixed, MANY),
        contender("all from Redis", &none, &backends::shuffled(1..=SAMPLE), MANY),
        contender("all from Postgres", &none, &unread, MANY),
    ];
    Ok(vec![Section {
        key: "tiers".to_owned(),
        title: format!("GetProduct, by the tier that answers, {MANY}"),
        text: "By the benchmark's own load generator. A read from Postgres is a miss: a lease, a SELECT of its own, a fill. CPU \
               without that of Redis and Postgres."
            .to_owned(),
        rows: interleaved(setup.sweep, &contenders).await?,
        against: vec!["all from memory"],
        columns: REQUESTS,
    }])
}

const TWO_HUNDRED_PRODUCTS: [&str; 4] = ["--hot-capacity", "200", "--soft-ttl", "1h"];

/// Every other id is one of a hundred that memory holds. The others are of thousands, more than memory holds.
fn half_from_memory(ids: &[i64]) -> Arc<[i64]> {
    let mut random = rand::rng();
    let mut any = |below: usize| ids[random.random_range(0..below)];
    let pick = |at: usize| if at.is_multiple_of(2) { any(100) } else { any(ids.len()) };
    (0..4 * ids.len()).map(pick).collect()
}

/// Hot reads of larger and larger catalogues, a tenth of which is in memory.
pub(crate) async fn catalogues(setup: &Setup) -> Result<Vec<Section>> {
    let mut sizes: Vec<i64> = vec![10_000, 100_000, 1_000_000];
    if setup.full {
        sizes.push(10_000_000);
    }
    let mut contenders = Vec::new();
    let mut servers = Vec::new();
    for size in sizes {
        let (server, hot) = catalogue(setup, size).await?;
        let label = format!("{size} products");
        contenders.push(pinned(&label, &server, &hot, MANY, &setup.halves.load));
        servers.push(server);
    }
    let mut before = Vec::new();
    for server in &servers {
        before.push(backends::served_by(server).await?);
    }
    let rows = interleaved(setup.effort, &contenders).await?;
    for (server, before) in servers.iter().zip(before) {
        let [hot, redis, postgres] = since(before, backends::served_by(server).await?);
        let share = hot / (hot + redis + postgres);
        ensure!(share > 0.99, "memory answered only {share:.3} of the reads of a large catalogue");
    }
    Ok(vec![Section {
        key: "catalogues".to_owned(),
        title: format!("GetProduct of large catalogues, a tenth of them hot, {MANY}"),
        text: format!(
            "By the benchmark's own load generator; each hot product is equally likely. {}",
            setup.halves.note()
        ),
        rows,
        against: vec!["10000 products"],
        columns: REQUESTS,
    }])
}

/// An instance with its own database and Redis namespace, and the ids that are hot in it.
async fn catalogue(setup: &Setup, size: i64) -> Result<(Server, Arc<[i64]>)> {
    let database = format!("catalogue_{size}");
    let sql = setup.backends.sql(&setup.backends.postgres.url()).await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {database}"))).execute(&sql).await?;
    setup.backends.attach_in(&database).await?;
    let url = setup.backends.postgres.url_of(&database);
    let hot = size / 10;
    let capacity = hot.to_string();
    let options = [
        ["--database-url", &url],
        ["--redis-namespace", &database],
        ["--hot-capacity", &capacity],
        ["--soft-ttl", "1h"],
    ];
    let server = setup.backends.hotshelf_on(&setup.halves.servers, options.as_flattened()).await?;
    backends::add_products(&setup.backends.sql(&url).await?, 1, size).await?;
    setup.backends.wait_until_relayed(&url).await?;
    let ids: Vec<i64> = (1..=hot).collect();
    backends::read(server.port, &ids).await?;
    Ok((server, backends::shuffled(1..=hot)))
}
