//! The operations that are counted.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use clap::ValueEnum;
use hotshelf::entry::Freshness;
use hotshelf::hot_keys::HotKeys;
use hotshelf::metrics::{Lookup, Method, Metrics, ServedBy};
use tokio::net::TcpListener;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::counted::{client_part, counted_part};
use crate::fixture::{Fixture, PRODUCTS, id};
use crate::wire::{Calls, Client};
use crate::{Error, reference};

/// An operation of the hot path, or of a reference server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Operation {
    /// The server side of one GetProduct: from the socket, through every layer, to the socket.
    GetProduct,
    /// The same for a BatchGetProducts of 100 products.
    BatchGetProducts,
    /// The catalogue's share of a GetProduct.
    CatalogGet,
    /// The metrics' share: a call that begins, a lookup, a read, and a call that ends.
    Metrics,
    /// The share of the heavy-hitters sketch.
    HotKeysRecord,
    /// For comparison: GetProduct of the usual server.
    OrdinaryTonic,
    /// For comparison: a constant from hyper's HTTP/2 server, with the connection I/O of hotshelf.
    BareHyper,
}

/// Enough for one-time and occasional work to vanish in the average.
const ROUNDS: usize = 32;
const WARM_UP: usize = 16;
const REPEATS: usize = 20_000;
const BATCH: usize = 100;

impl Operation {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().expect("no variant is skipped").get_name().to_owned()
    }

    /// Whether the operation is one of a reference server.
    pub(crate) fn is_reference(self) -> bool {
        matches!(self, Self::OrdinaryTonic | Self::BareHyper)
    }

    /// Operations that are counted together.
    pub(crate) fn repeats(self) -> usize {
        match self {
            Self::GetProduct | Self::BatchGetProducts | Self::OrdinaryTonic | Self::BareHyper => {
                ROUNDS * self.calls().at_once
            }
            Self::CatalogGet | Self::Metrics | Self::HotKeysRecord => REPEATS,
        }
    }

    /// How often the operation is counted; the smallest count is used. The header `date` changes each second, and HPACK then
    /// compares every response with more entries of its table. The hot tier's hash keys are random in each run, and so is the
    /// length of its probe sequences, of which a batch has many.
    pub(crate) fn attempts(self) -> usize {
        match self {
            Self::BatchGetProducts => 9,
            Self::GetProduct | Self::OrdinaryTonic | Self::BareHyper => 3,
            Self::CatalogGet | Self::Metrics | Self::HotKeysRecord => 1,
        }
    }

    fn calls(self) -> Calls {
        match self {
            Self::BatchGetProducts => Calls::batch_get_products(BATCH, 4),
            // As many concurrent calls on a connection as in the benchmark.
            _ => Calls::get_product(32),
        }
    }

    /// Performs the operation `repeats` times, after a warm-up.
    pub(crate) fn perform(self) -> Result<(), Error> {
        log_as_the_program_does();
        match self {
            Self::GetProduct | Self::BatchGetProducts => {
                let fixture = Fixture::new()?;
                over_the_wire(self.calls(), async |listener| fixture.serve(listener).await)?;
                fixture.answered_from_memory()
            }
            Self::OrdinaryTonic => over_the_wire(self.calls(), async |listener| {
                reference::serve_ordinary(listener);
                Ok(())
            }),
            Self::BareHyper => over_the_wire(self.calls(), async |listener| {
                reference::serve_bare(listener);
                Ok(())
            }),
            Self::CatalogGet => catalog_get(),
            Self::Metrics => {
                record_metrics(&Metrics::new());
                Ok(())
            }
            Self::HotKeysRecord => {
                record_hot_keys(&HotKeys::new());
                Ok(())
            }
        }
    }
}

/// Without a subscriber, `tracing` would format h2's spans for the `log` crate.
fn log_as_the_program_does() {
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let filter = Targets::new().with_default(LevelFilter::INFO);
    tracing_subscriber::registry().with(filter).with(lines).init();
}

/// With real sockets, and one thread for client and server, so that every run executes the same instructions.
fn over_the_wire(
    calls: Calls,
    serve: impl AsyncFnOnce(TcpListener) -> Result<(), Error>,
) -> Result<(), Error> {
    let failed = |error| Error::Io("the connection".to_owned(), error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let mut client = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        serve(listener).await?;
        Client::connect(address, calls).await.map_err(failed)
    })?;
    runtime.block_on(client.rounds(WARM_UP)).map_err(failed)?;
    let mut outcome = Ok(());
    counted_part(&mut || {
        let mut rounds = pin!(async { outcome = client.rounds(ROUNDS).await });
        runtime.block_on(poll_fn(|cx| client_part(rounds.as_mut(), cx)));
    });
    outcome.map_err(failed)
}

fn catalog_get() -> Result<(), Error> {
    let fixture = Fixture::new()?;
    let read = |n: usize| fixture.catalog.get_hot(id(n), &Freshness::Cached);
    (0..PRODUCTS).for_each(|n| drop(read(n)));
    counted_part(&mut || (0..REPEATS).for_each(|n| drop(read(n % PRODUCTS))));
    fixture.answered_from_memory()
}

fn record_metrics(metrics: &Metrics) {
    let record = |n: usize| {
        metrics.call_started(Method::GetProduct);
        metrics.lookups.inc(Lookup::HotHit);
        metrics.reads.inc(ServedBy::Hot);
        metrics.call_handled(Method::GetProduct, 0, Duration::from_nanos(n as u64));
    };
    record(0);
    counted_part(&mut || (0..REPEATS).for_each(record));
}

fn record_hot_keys(hot_keys: &HotKeys) {
    let record = |n: usize| hot_keys.record(id(n % PRODUCTS));
    (0..PRODUCTS).for_each(record);
    counted_part(&mut || (0..REPEATS).for_each(record));
}
