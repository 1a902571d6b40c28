//! Reads of one product from hotshelf, the ordinary server, the bare server, nginx and Redis.

use anyhow::Result;
use baselines::proto::Product;
use prost::Message;

use crate::backends::{self, Backends};
use crate::cores::{Cores, Halves};
use crate::h2load::{H2load, Shape};
use crate::load::Load;
use crate::measure::{Contender, interleaved};
use crate::nginx;
use crate::redis_load::RedisBenchmark;
use crate::report::{REQUESTS, Section};
use crate::server::Server;
use crate::setup::Setup;

pub(crate) const SHAPES: [Shape; 4] = [
    Shape { connections: 8, streams: 32 },
    Shape { connections: 1, streams: 100 },
    Shape { connections: 16, streams: 1 },
    Shape { connections: 1, streams: 1 },
];

/// Bytes of the flag and the length in front of a message.
pub(crate) const FRAME: usize = 5;

/// Servers that all answer with the same bytes.
pub(crate) struct Servers {
    pub(crate) hotshelf: Server,
    pub(crate) ordinary: Server,
    pub(crate) bare: Server,
    nginx: Option<Server>,
}

impl Servers {
    pub(crate) async fn start(backends: &Backends, cores: &Cores) -> Result<(Self, Vec<Product>)> {
        let hotshelf = backends.hotshelf_on(cores, &[]).await?;
        backends.wait_until_relayed(&backends.postgres.url()).await?;
        let ids: Vec<i64> = (1..=backends::SAMPLE).collect();
        let products = backends::read(hotshelf.port, &ids).await?;
        let typical = backends::typical(&products)?;
        let servers = Self {
            hotshelf,
            ordinary: backends.baseline_on(cores, "ordinary", &products).await?,
            bare: backends.baseline_on(cores, "bare", std::slice::from_ref(typical)).await?,
            nginx: nginx::start(backends, FRAME + typical.encoded_len(), cores).await?,
        };
        for (label, server) in servers.grpc() {
            backends::check(label, server.port, typical).await?;
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

/// A comparison for each shape, with the load on separate cores: on those of the server, requests/s would mostly depend on
/// the load generator. Then the first shape again, with everything on the same cores.
pub(crate) async fn compare(setup: &Setup) -> Result<Vec<Section>> {
    let halves = &setup.halves;
    let (separate, _) = Servers::start(&setup.backends, &halves.servers).await?;
    let mut sections = Vec::new();
    for shape in SHAPES {
        sections.push(section(setup, "reads", shape, &separate, halves).await?);
    }
    let all = Halves::default();
    let shared = section(setup, "shared", SHAPES[0], &setup.servers, &all).await?;
    sections.push(Section { title: format!("{}, on the same cores", shared.title), ..shared });
    Ok(sections)
}

async fn section(
    setup: &Setup,
    name: &str,
    shape: Shape,
    servers: &Servers,
    halves: &Halves,
) -> Result<Section> {
    let bytes = setup.typical()?.encoded_len();
    let contender = |(label, server): (&str, &Server)| -> Result<Contender> {
        let read = setup.typical_read(server, shape)?;
        let load = Load::H2load(H2load { cores: halves.load.clone(), ..read });
        Ok(Contender { label: label.to_owned(), pids: vec![server.pid], load })
    };
    let mut contenders: Vec<Contender> = servers.all().map(contender).collect::<Result<_>>()?;
    contenders.extend(redis(&setup.backends, bytes, shape, &halves.load)?);
    Ok(Section {
        key: format!("{name} {shape}"),
        title: format!("GetProduct, hot, {shape}"),
        text: format!(
            "One product of {bytes} bytes. CPU is the server's, for each request. {}",
            halves.note()
        ),
        rows: interleaved(setup.effort, &contenders).await?,
        against: vec!["ordinary", "bare", "nginx"],
        columns: REQUESTS,
    })
}

/// Redis with the same bytes, in its own protocol, if redis-benchmark is installed.
fn redis(
    backends: &Backends,
    bytes: usize,
    shape: Shape,
    cores: &Cores,
) -> Result<Option<Contender>> {
    if std::process::Command::new("redis-benchmark").arg("--version").output().is_err() {
        return Ok(None);
    }
    let key = "bench:constant".to_owned();
    backends.redis.command(&["SET", &key, &"x".repeat(bytes)])?;
    let load = RedisBenchmark {
        port: backends.redis.port(),
        connections: shape.connections,
        pipeline: shape.streams,
        key,
        cores: cores.clone(),
    };
    Ok(backends.redis.pid().map(|pid| Contender {
        label: "redis-server".to_owned(),
        pids: vec![pid],
        load: Load::RedisBenchmark(load),
    }))
}
