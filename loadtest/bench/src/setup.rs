//! The setup of every comparison: servers, products, and how long to measure.

use anyhow::Result;
use baselines::proto::Product;
use prost::Message;

use crate::backends::{self, Backends, GET_PRODUCT};
use crate::cores::{Cores, Halves};
use crate::h2load::{Form, H2load, Shape};
use crate::measure::Effort;
use crate::reads::{FRAME, Servers};
use crate::server::Server;

pub(crate) struct Setup {
    /// On all cores.
    pub(crate) servers: Servers,
    /// For comparisons in which servers and load must not share cores.
    pub(crate) halves: Halves,
    pub(crate) backends: Backends,
    /// The sample, in the order of ids.
    pub(crate) products: Vec<Product>,
    /// For sections with a claim.
    pub(crate) effort: Effort,
    /// For the others.
    pub(crate) sweep: Effort,
    /// Whether to measure everything.
    pub(crate) full: bool,
}

impl Setup {
    pub(crate) async fn prepare(effort: Effort, full: bool) -> Result<Self> {
        let backends = Backends::start().await?;
        let (servers, products) = Servers::start(&backends, &Cores::default()).await?;
        let rounds = if full { effort.rounds } else { effort.rounds.min(9) };
        let sweep = Effort { rounds, ..effort };
        Ok(Self { servers, halves: Halves::split(), backends, products, effort, sweep, full })
    }

    /// The product of all reads of one product.
    pub(crate) fn typical(&self) -> Result<&Product> {
        backends::typical(&self.products)
    }

    /// Reads of the typical product.
    pub(crate) fn typical_read(&self, server: &Server, shape: Shape) -> Result<H2load> {
        let product = self.typical()?;
        Ok(H2load {
            port: server.port,
            form: Form::Grpc(GET_PRODUCT),
            http1: false,
            body: self.backends.request(&backends::get(product.id))?,
            reply: FRAME + product.encoded_len(),
            shape,
            cores: Cores::default(),
        })
    }
}
