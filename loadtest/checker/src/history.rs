//! The record of a run.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hotshelf::proto::{Money, Product};

/// Microseconds since the run began.
pub type Micros = u64;

/// The clock of a run. Every moment in a history is read from it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    wall: SystemTime,
}

impl Clock {
    /// A clock that reads zero now.
    #[must_use]
    pub fn start() -> Self {
        Self { origin: Instant::now(), wall: SystemTime::now() }
    }

    #[must_use]
    pub fn now(&self) -> Micros {
        micros(self.origin.elapsed())
    }

    /// The reading at `moment`.
    #[must_use]
    pub fn at(&self, moment: Instant) -> Micros {
        micros(moment.saturating_duration_since(self.origin))
    }

    /// The reading when the wall clock read this, in microseconds since 1970.
    #[must_use]
    pub fn at_wall(&self, micros_since_1970: i64) -> Micros {
        let origin = micros(self.wall.duration_since(UNIX_EPOCH).unwrap_or_default());
        micros_since_1970.unsigned_abs().saturating_sub(origin)
    }
}

#[must_use]
pub fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Identifies the statement that wrote the content of a product.
pub type WriteId = u32;

/// Name and price, in hundredths, of the products of a write: no two writes give the same.
#[must_use]
pub fn content(write: WriteId) -> (String, i64) {
    (format!("w{write}"), i64::from(write) * 7_919 % 9_999_999)
}

/// The write that gave this content. `None` if no write did, or if name and price are from two writes.
#[must_use]
pub fn write_of(name: &str, hundredths: i64) -> Option<WriteId> {
    let write = name.strip_prefix('w')?.parse().ok()?;
    (content(write) == (name.to_owned(), hundredths)).then_some(write)
}

/// A state of a product. States order by commit: a deletion has the version of the row that it deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    pub version: i64,
    pub deleted: bool,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, deleted } = self;
        if *deleted {
            write!(f, "the deletion of {version}")
        } else {
            write!(f, "version {version}")
        }
    }
}

/// How a product was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UpdateProduct, through an instance.
    Api,
    /// A statement or a transaction of plain SQL.
    Sql,
}

/// A committed state, from the record in Postgres.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    pub product: i64,
    pub state: State,
    /// The write that gave the content; `None` if it was none of the checker.
    pub write: Option<WriteId>,
    /// When the row was written, by the clock of Postgres: some time before the commit.
    pub written: Micros,
}

/// A write that was confirmed to its writer.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    pub product: i64,
    pub state: State,
    pub kind: Kind,
    /// The write was not committed before this.
    pub sent: Micros,
    /// The write was committed before this.
    pub acked: Micros,
}

/// The tier that a response names in `cache-status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    Hot,
    Redis,
    Postgres,
    /// A batch names only the farthest tier of all its products.
    Unknown,
}

/// The freshness that a read asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFreshness {
    /// None in particular.
    Plain,
    MinVersion(i64),
    MaxStaleness(Micros),
    Latest,
}

/// What a response shows of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The version, and the write that gave the content; `None` if no write of the checker gives it.
    Product(i64, Option<WriteId>),
    Absent,
    /// Postgres has not reached the requested version.
    NotReached,
}

/// One product in one response.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    pub product: i64,
    pub instance: u8,
    pub tier: Tier,
    /// How long after it was due the request was sent.
    pub late: u32,
    pub wish: ReadFreshness,
    pub seen: Seen,
    /// The response is marked stale.
    pub stale: bool,
    /// The request was sent.
    pub begin: Micros,
    /// The response arrived.
    pub end: Micros,
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Method, code and message, equal for all failures of one cause.
    pub what: String,
    pub request: Request,
    pub due: Micros,
    pub end: Micros,
}

/// The numbers are a product and an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Read(i64, u8, ReadFreshness),
    Batch(u8),
    Update(u8),
    /// Plain SQL, sent to Postgres.
    Sql,
}

/// Each list is in any order.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The number of instances.
    pub instances: u8,
    pub committed: Vec<Committed>,
    pub acks: Vec<Ack>,
    pub reads: Vec<Read>,
}

/// What a response shows of this product.
#[must_use]
pub fn seen(product: &Product) -> Seen {
    let hundredths = |money: &Money| money.units * 100 + i64::from(money.nanos / 10_000_000);
    let price = product.price.as_ref().map_or(-1, hundredths);
    Seen::Product(product.version, write_of(&product.name, price))
}
