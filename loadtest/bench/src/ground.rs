//! What every comparison stands on.

use anyhow::Result;
use baselines::proto::Product;
use prost::Message;

use crate::cores::{Cores, Halves};
use crate::h2load::{H2load, Shape};
use crate::measure::Effort;
use crate::reads::{FRAME, Servers};
use crate::server::Server;
use crate::shop::{self, GET_PRODUCT, Shop};

/// The servers, the products, and how much is to be done.
pub(crate) struct Ground {
    pub(crate) servers: Servers,
    /// Where they and the load are that must not meet.
    pub(crate) halves: Halves,
    pub(crate) shop: Shop,
    /// The sample, in the order of ids.
    pub(crate) products: Vec<Product>,
    /// Where something is claimed.
    pub(crate) effort: Effort,
    /// Where nothing is.
    pub(crate) sweep: Effort,
    /// Everything, however long it takes.
    pub(crate) full: bool,
}

impl Ground {
    pub(crate) async fn prepare(effort: Effort, full: bool) -> Result<Self> {
        let shop = Shop::open().await?;
        let (servers, products) = Servers::start(&shop, &Cores::default()).await?;
        let rounds = if full { effort.rounds } else { effort.rounds.min(9) };
        let sweep = Effort { rounds, ..effort };
        Ok(Self { servers, halves: Halves::apart(), shop, products, effort, sweep, full })
    }

    /// The product that everybody asks for.
    pub(crate) fn typical(&self) -> Result<&Product> {
        shop::typical(&self.products)
    }

    /// Reads of it.
    pub(crate) fn typical_read(&self, server: &Server, shape: Shape) -> Result<H2load> {
        let product = self.typical()?;
        Ok(H2load {
            port: server.port,
            method: GET_PRODUCT,
            body: self.shop.request(&shop::get(product.id))?,
            reply: FRAME + product.encoded_len(),
            shape,
            cores: Cores::default(),
        })
    }
}
