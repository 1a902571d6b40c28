//! One product, read by everybody: hotshelf, the ordinary server, the bare server, nginx, Redis.

use anyhow::Result;
use baselines::proto::Product;
use prost::Message;

use crate::cores::{Cores, Halves};
use crate::ground::Ground;
use crate::h2load::{H2load, Shape};
use crate::load::Load;
use crate::measure::{Contender, interleaved};
use crate::nginx;
use crate::redis_load::RedisBenchmark;
use crate::report::{REQUESTS, Section};
use crate::server::Server;
use crate::shop::{self, Shop};

pub(crate) const SHAPES: [Shape; 4] = [
    Shape { connections: 8, streams: 32 },
    Shape { connections: 1, streams: 100 },
    Shape { connections: 16, streams: 1 },
    Shape { connections: 1, streams: 1 },
];

/// The flag and the length of a message.
pub(crate) const FRAME: usize = 5;

/// The servers, all of which answer with the same bytes.
pub(crate) struct Servers {
    pub(crate) hotshelf: Server,
    pub(crate) ordinary: Server,
    pub(crate) bare: Server,
    nginx: Option<Server>,
}

impl Servers {
    pub(crate) async fn start(shop: &Shop, cores: &Cores) -> Result<(Self, Vec<Product>)> {
        let hotshelf = shop.hotshelf_on(cores, &[]).await?;
        shop.settle().await?;
        let ids: Vec<i64> = (1..=shop::SAMPLE).collect();
        let products = shop::read(hotshelf.port, &ids).await?;
        let typical = shop::typical(&products)?;
        let servers = Self {
            hotshelf,
            ordinary: shop.baseline_on(cores, "ordinary", &products).await?,
            bare: shop.baseline_on(cores, "bare", std::slice::from_ref(typical)).await?,
            nginx: nginx::start(shop, FRAME + typical.encoded_len(), cores).await?,
        };
        for (label, server) in servers.grpc() {
            shop::check(label, server.port, typical).await?;
        }
        Ok((servers, products))
    }

    pub(crate) fn grpc(&self) -> [(&'static str, &Server); 3] {
        [("hotshelf", &self.hotshelf), ("ordinary", &self.ordinary), ("bare", &self.bare)]
    }

    fn all(&self) -> impl Iterator<Item = (&'static str, &Server)> {
        self.grpc().into_iter().chain(self.nginx.as_ref().map(|nginx| ("nginx", nginx)))
    }
}

/// A comparison for each shape, with the load on cores of its own: on the server's, it would mostly be the load generator
/// that decides how many requests there are. And the first one again with everything on the same cores.
pub(crate) async fn compare(ground: &Ground) -> Result<Vec<Section>> {
    let halves = &ground.halves;
    let (apart, _) = Servers::start(&ground.shop, &halves.servers).await?;
    let mut sections = Vec::new();
    for shape in SHAPES {
        sections.push(section(ground, "reads", shape, &apart, halves).await?);
    }
    let together = Halves::default();
    let shared = section(ground, "shared", SHAPES[0], &ground.servers, &together).await?;
    sections.push(Section { title: format!("{}, on the same cores", shared.title), ..shared });
    Ok(sections)
}

async fn section(
    ground: &Ground,
    name: &str,
    shape: Shape,
    servers: &Servers,
    halves: &Halves,
) -> Result<Section> {
    let bytes = ground.typical()?.encoded_len();
    let contender = |(label, server): (&str, &Server)| -> Result<Contender> {
        let read = ground.typical_read(server, shape)?;
        let load = Load::H2load(H2load { cores: halves.load.clone(), ..read });
        Ok(Contender { label: label.to_owned(), pids: vec![server.pid], load })
    };
    let mut contenders: Vec<Contender> = servers.all().map(contender).collect::<Result<_>>()?;
    contenders.extend(redis(&ground.shop, bytes, shape, &halves.load)?);
    Ok(Section {
        key: format!("{name} {shape}"),
        title: format!("GetProduct, hot, {shape}"),
        text: format!(
            "One product of {bytes} bytes. CPU is the server's, for each request. {}",
            halves.note()
        ),
        rows: interleaved(ground.effort, &contenders).await?,
        against: vec!["ordinary", "bare", "nginx"],
        columns: REQUESTS,
    })
}

/// Redis with the same bytes, asked in its own protocol.
fn redis(shop: &Shop, bytes: usize, shape: Shape, cores: &Cores) -> Result<Option<Contender>> {
    if std::process::Command::new("redis-benchmark").arg("--version").output().is_err() {
        return Ok(None);
    }
    let key = "bench:constant".to_owned();
    shop.redis.command(&["SET", &key, &"x".repeat(bytes)])?;
    let load = RedisBenchmark {
        port: shop.redis.port(),
        connections: shape.connections,
        pipeline: shape.streams,
        key,
        cores: cores.clone(),
    };
    Ok(shop.redis.pid().map(|pid| Contender {
        label: "redis-server".to_owned(),
        pids: vec![pid],
        load: Load::RedisBenchmark(load),
    }))
}
