//! hotshelf with batches, larger products, watchers, and several instances.

use anyhow::Result;
use baselines::proto::{BatchGetProductsResponse, Product};
use prost::Message;

use crate::backends::{self, BATCH_GET_PRODUCTS, GET_PRODUCT};
use crate::cores::Cores;
use crate::h2load::{Form, H2load, Shape};
use crate::load::Load;
use crate::measure::{Contender, interleaved};
use crate::reads::FRAME;
use crate::report::{REQUESTS, Section};
use crate::server::Server;
use crate::setup::Setup;

/// Few enough calls at a time that large replies do not only queue, and enough to keep two cores busy.
const BATCHES: Shape = Shape { connections: 8, streams: 4 };
const READS: Shape = Shape { connections: 8, streams: 32 };

const BATCH_SIZES: [usize; 4] = [1, 10, 100, 1_000];
/// The batch with a claim.
const CLAIMED_BATCH: usize = 100;
const WATCHERS: [usize; 4] = [0, 1, 3, 9];
const INSTANCES: usize = 3;

fn contender(label: &str, server: &Server, load: H2load) -> Contender {
    let load = Load::H2load(H2load { port: server.port, ..load });
    Contender { label: label.to_owned(), pids: vec![server.pid], load }
}

/// BatchGetProducts of hot products.
pub(crate) async fn batches(setup: &Setup) -> Result<Vec<Section>> {
    let mut sections = Vec::new();
    for size in BATCH_SIZES {
        let products: Vec<Product> = setup.products.iter().take(size).cloned().collect();
        let ids: Vec<i64> = products.iter().map(|product| product.id).collect();
        let reply = BatchGetProductsResponse { products, ..Default::default() };
        let load = H2load {
            port: 0,
            form: Form::Grpc(BATCH_GET_PRODUCTS),
            http1: false,
            body: setup.backends.request(&backends::get_many(&ids))?,
            reply: FRAME + reply.encoded_len(),
            shape: BATCHES,
            cores: Cores::default(),
        };
        let servers = &setup.servers;
        let contenders = [
            contender("hotshelf", &servers.hotshelf, load.clone()),
            contender("ordinary", &servers.ordinary, load),
        ];
        let effort = if size == CLAIMED_BATCH { setup.effort } else { setup.sweep };
        sections.push(Section {
            key: format!("batch {size}"),
            title: format!("BatchGetProducts of {size}, hot, {BATCHES}"),
            text: format!("Figures are for each batch of {} bytes.", reply.encoded_len()),
            rows: interleaved(effort, &contenders).await?,
            against: vec!["ordinary"],
            columns: REQUESTS,
        });
    }
    Ok(sections)
}

/// GetProduct of larger products.
pub(crate) async fn sizes(setup: &Setup) -> Result<Vec<Section>> {
    let ids = backends::LARGE.map(|(id, _)| id);
    // By default memory would not keep the largest.
    let hotshelf = setup.backends.hotshelf(&["--hot-max-product-bytes", "131072"]).await?;
    let large = backends::read(hotshelf.port, &ids).await?;
    let mut sections = Vec::new();
    for product in large {
        let load = H2load {
            port: 0,
            form: Form::Grpc(GET_PRODUCT),
            http1: false,
            body: setup.backends.request(&backends::get(product.id))?,
            reply: FRAME + product.encoded_len(),
            shape: READS,
            cores: Cores::default(),
        };
        let only = std::slice::from_ref(&product);
        backends::check("hotshelf", hotshelf.port, &product).await?;
        let ordinary = setup.backends.baseline("ordinary", only).await?;
        let bare = setup.backends.baseline("bare", only).await?;
        let contenders = [
            contender("hotshelf", &hotshelf, load.clone()),
            contender("ordinary", &ordinary, load.clone()),
            contender("bare", &bare, load),
        ];
        sections.push(Section {
            key: format!("size {}", product.encoded_len()),
            title: format!("GetProduct of {} bytes, hot, {READS}", product.encoded_len()),
            text: "As above, with a larger product.".to_owned(),
            rows: interleaved(setup.sweep, &contenders).await?,
            against: vec!["ordinary", "bare"],
            columns: REQUESTS,
        });
    }
    Ok(sections)
}

/// GetProduct while clients read StreamHotKeys.
pub(crate) async fn watchers(setup: &Setup) -> Result<Vec<Section>> {
    let hotshelf = &setup.servers.hotshelf;
    let contender = |watchers: usize| -> Result<Contender> {
        Ok(Contender {
            label: format!("{watchers} watching"),
            pids: vec![hotshelf.pid],
            load: Load::Watched(watchers, setup.typical_read(hotshelf, READS)?),
        })
    };
    let contenders = WATCHERS.map(contender).into_iter().collect::<Result<Vec<_>>>()?;
    Ok(vec![Section {
        key: "watchers".to_owned(),
        title: format!("GetProduct with watchers of StreamHotKeys, hot, {READS}"),
        text: "Each watcher gets a snapshot every second; what that costs is in the figures."
            .to_owned(),
        rows: interleaved(setup.effort, &contenders).await?,
        against: vec!["0 watching", "1 watching"],
        columns: REQUESTS,
    }])
}

/// GetProduct through several instances at the same time, each with its own load.
pub(crate) async fn instances(setup: &Setup) -> Result<Vec<Section>> {
    let product = setup.typical()?;
    let mut others = Vec::new();
    for _ in 1..INSTANCES {
        let instance = setup.backends.hotshelf(&[]).await?;
        backends::read(instance.port, &[product.id]).await?;
        backends::check("another instance", instance.port, product).await?;
        others.push(instance);
    }
    let all: Vec<&Server> = [&setup.servers.hotshelf].into_iter().chain(&others).collect();
    let mut contenders = Vec::new();
    for count in 1..=INSTANCES {
        let some = &all[..count];
        let loads = some.iter().map(|server| setup.typical_read(server, READS));
        contenders.push(Contender {
            label: format!("{count} running"),
            pids: some.iter().map(|server| server.pid).collect(),
            load: Load::Together(loads.collect::<Result<_>>()?),
        });
    }
    Ok(vec![Section {
        key: "instances".to_owned(),
        title: format!("GetProduct through 1 to {INSTANCES} instances, hot, {READS} at each"),
        text: "CPU is that of all instances, for each request; on one machine they share its cores with the load \
               generators. p50 and p99 are those of the slowest instance."
            .to_owned(),
        rows: interleaved(setup.sweep, &contenders).await?,
        against: vec!["1 running"],
        columns: REQUESTS,
    }])
}
