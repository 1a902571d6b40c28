//! Reads that memory does not answer, many keys against one, and large catalogues.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Result, ensure};
use rand::RngExt;

use crate::cores::{Cores, Halves};
use crate::ground::Ground;
use crate::h2load::Shape;
use crate::keys::Keys;
use crate::load::Load;
use crate::measure::{Contender, interleaved};
use crate::redis_load::RedisGets;
use crate::report::{REQUESTS, Section};
use crate::server::Server;
use crate::shop::{self, SAMPLE};

const MANY: Shape = Shape { connections: 8, streams: 32 };
const ONE: Shape = Shape { connections: 1, streams: 1 };

/// Products that only Postgres has, and that nobody reads twice while there are more.
const UNREAD: (i64, i64) = (2_000_000, 200_000);

fn contender(label: &str, server: &Server, ids: &Arc<[i64]>, shape: Shape) -> Contender {
    held(label, server, ids, shape, &Cores::default())
}

/// One whose load is to stay on these cores.
fn held(label: &str, server: &Server, ids: &Arc<[i64]>, shape: Shape, cores: &Cores) -> Contender {
    let (ids, cores, next) = (Arc::clone(ids), cores.clone(), Arc::new(AtomicU64::new(0)));
    let load = Load::Keys(Keys { port: server.port, ids, shape, cores, next });
    Contender { label: label.to_owned(), pids: vec![server.pid], load }
}

/// Everybody wants the same product, or each another one.
pub(crate) async fn one_key(ground: &Ground) -> Result<Vec<Section>> {
    let Halves { servers, load } = &ground.halves;
    let hotshelf = ground.shop.hotshelf_on(servers, &[]).await?;
    let ids: Vec<i64> = (1..=SAMPLE).collect();
    shop::read(hotshelf.port, &ids).await?;
    let one = shop::shuffled([ground.typical()?.id].into_iter());
    let all = shop::shuffled(ids.into_iter());
    let contenders = [
        held("one key", &hotshelf, &one, MANY, load),
        held("uniform keys", &hotshelf, &all, MANY, load),
    ];
    Ok(vec![Section {
        key: "keys".to_owned(),
        title: format!("GetProduct of one product, and of {SAMPLE}, hot, {MANY}"),
        text: format!(
            "By a load generator of our own, for h2load sends one body only. {}",
            ground.halves.note()
        ),
        rows: interleaved(ground.effort, &contenders).await?,
        against: vec!["uniform keys"],
        columns: REQUESTS,
    }])
}

/// Redis has a part of its own for it: what is hot in the instances before it is not to be kept warm there, in vain.
const FORGETFUL: [&str; 6] =
    ["--hot-capacity", "1", "--soft-ttl", "1h", "--redis-namespace", "forgetful"];

/// An instance whose memory holds one product, so that Redis answers.
async fn forgetful(ground: &Ground) -> Result<Server> {
    let server = ground.shop.hotshelf(&FORGETFUL).await?;
    let ids: Vec<i64> = (1..=SAMPLE).collect();
    shop::read(server.port, &ids).await?;
    Ok(server)
}

/// Hits in Redis.
pub(crate) async fn redis(ground: &Ground) -> Result<Vec<Section>> {
    let hotshelf = forgetful(ground).await?;
    let ordinary = ground.shop.baseline("ordinary-redis", &ground.products).await?;
    let all = shop::shuffled(1..=SAMPLE);
    let ids: Vec<i64> = (1..=SAMPLE).collect();
    let before = shop::served_by(&hotshelf).await?;
    let mut sections = Vec::new();
    for shape in [MANY, ONE] {
        let in_flight = shape.connections * shape.streams;
        let gets = RedisGets::connect(&ground.shop.redis.url(), &ids, in_flight).await?;
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
            rows: interleaved(ground.effort, &contenders).await?,
            against: vec!["ordinary"],
            columns: REQUESTS,
        });
    }
    let [hot, from_redis, postgres] = since(before, shop::served_by(&hotshelf).await?);
    let share = from_redis / (hot + from_redis + postgres);
    ensure!(share > 0.95, "only {share:.2} of the reads were answered by Redis");
    Ok(sections)
}

fn since(before: [f64; 3], after: [f64; 3]) -> [f64; 3] {
    std::array::from_fn(|tier| after[tier] - before[tier])
}

/// How much of the reads memory answers: all, some, none; and what Postgres costs.
pub(crate) async fn hit_ratios(ground: &Ground) -> Result<Vec<Section>> {
    let sql = ground.shop.sql(&ground.shop.postgres.url()).await?;
    shop::add_products(&sql, UNREAD.0, UNREAD.1).await?;
    let unread = shop::shuffled(UNREAD.0..UNREAD.0 + UNREAD.1);
    let (half, none) = (ground.shop.hotshelf(&HALF_FORGETFUL).await?, forgetful(ground).await?);
    let mixed = half_of_a_few(&ground.products.iter().map(|one| one.id).collect::<Vec<i64>>());
    let hotshelf = &ground.servers.hotshelf;
    let contenders = [
        contender("all from memory", hotshelf, &shop::shuffled(1..=SAMPLE), MANY),
        contender("half from memory, half from Redis", &half, &mixed, MANY),
        contender("all from Redis", &none, &shop::shuffled(1..=SAMPLE), MANY),
        contender("all from Postgres", &none, &unread, MANY),
    ];
    Ok(vec![Section {
        key: "tiers".to_owned(),
        title: format!("GetProduct, by the tier that answers, {MANY}"),
        text: "By a load generator of our own. What Postgres answers is a miss: a lease, a SELECT of its own, a fill. CPU \
               without that of Redis and Postgres."
            .to_owned(),
        rows: interleaved(ground.sweep, &contenders).await?,
        against: vec!["all from memory"],
        columns: REQUESTS,
    }])
}

const HALF_FORGETFUL: [&str; 4] = ["--hot-capacity", "200", "--soft-ttl", "1h"];

/// Every other one of a hundred that memory holds, the others of thousands that it cannot hold.
fn half_of_a_few(ids: &[i64]) -> Arc<[i64]> {
    let mut random = rand::rng();
    let mut any = |below: usize| ids[random.random_range(0..below)];
    let pick = |at: usize| if at.is_multiple_of(2) { any(100) } else { any(ids.len()) };
    (0..4 * ids.len()).map(pick).collect()
}

/// Hot reads of larger and larger catalogues, a tenth of which is in memory.
pub(crate) async fn catalogues(ground: &Ground) -> Result<Vec<Section>> {
    let mut sizes: Vec<i64> = vec![10_000, 100_000, 1_000_000];
    if ground.full {
        sizes.push(10_000_000);
    }
    let mut contenders = Vec::new();
    let mut servers = Vec::new();
    for size in sizes {
        let (server, hot) = catalogue(ground, size).await?;
        let label = format!("{size} products");
        contenders.push(held(&label, &server, &hot, MANY, &ground.halves.load));
        servers.push(server);
    }
    let mut before = Vec::new();
    for server in &servers {
        before.push(shop::served_by(server).await?);
    }
    let rows = interleaved(ground.effort, &contenders).await?;
    for (server, before) in servers.iter().zip(before) {
        let [hot, redis, postgres] = since(before, shop::served_by(server).await?);
        let share = hot / (hot + redis + postgres);
        ensure!(share > 0.99, "memory answered only {share:.3} of the reads of a large catalogue");
    }
    Ok(vec![Section {
        key: "catalogues".to_owned(),
        title: format!("GetProduct of large catalogues, a tenth of them hot, {MANY}"),
        text: format!(
            "By a load generator of our own; each hot product is as likely as the next. {}",
            ground.halves.note()
        ),
        rows,
        against: vec!["10000 products"],
        columns: REQUESTS,
    }])
}

/// An instance with a database and a part of Redis of its own, and requests for what is hot in it.
async fn catalogue(ground: &Ground, size: i64) -> Result<(Server, Arc<[i64]>)> {
    let database = format!("catalogue_{size}");
    let sql = ground.shop.sql(&ground.shop.postgres.url()).await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {database}"))).execute(&sql).await?;
    let url = ground.shop.postgres.url_of(&database);
    let hot = size / 10;
    let capacity = hot.to_string();
    let options = [
        ["--database-url", &url],
        ["--redis-namespace", &database],
        ["--hot-capacity", &capacity],
        ["--soft-ttl", "1h"],
    ];
    let server = ground.shop.hotshelf_on(&ground.halves.servers, options.as_flattened()).await?;
    shop::add_products(&ground.shop.sql(&url).await?, 1, size).await?;
    ground.shop.settle_database(&url).await?;
    let ids: Vec<i64> = (1..=hot).collect();
    shop::read(server.port, &ids).await?;
    Ok((server, shop::shuffled(1..=hot)))
}
