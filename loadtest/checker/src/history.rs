//! What is recorded of a run.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hotshelf::proto::{Money, Product};

/// Microseconds since the run began.
pub type Micros = u64;

/// The clock of a run: every moment in a history is read from it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    wall: SystemTime,
}

impl Clock {
    /// A clock that shows zero now.
    #[must_use]
    pub fn start() -> Self {
        Self { origin: Instant::now(), wall: SystemTime::now() }
    }

    /// What it shows now.
    #[must_use]
    pub fn now(&self) -> Micros {
        micros(self.origin.elapsed())
    }

    /// What it showed at `moment`.
    #[must_use]
    pub fn at(&self, moment: Instant) -> Micros {
        micros(moment.saturating_duration_since(self.origin))
    }

    /// What it showed when the wall clock said this, in microseconds since 1970.
    #[must_use]
    pub fn at_wall(&self, micros_since_1970: i64) -> Micros {
        let origin = micros(self.wall.duration_since(UNIX_EPOCH).unwrap_or_default());
        micros_since_1970.unsigned_abs().saturating_sub(origin)
    }
}

/// A duration in the unit of a history.
#[must_use]
pub fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Identifies the statement that gave a product its content.
pub type WriteId = u32;

/// What the products are called, and cost, after a write: no two writes give the same.
#[must_use]
pub fn content(write: WriteId) -> (String, i64) {
    (format!("w{write}"), i64::from(write) * 7_919 % 9_999_999)
}

/// Which write gave this content; `None` when no write did, or a mixture of two.
#[must_use]
pub fn write_of(name: &str, hundredths: i64) -> Option<WriteId> {
    let write = name.strip_prefix('w')?.parse().ok()?;
    (content(write) == (name.to_owned(), hundredths)).then_some(write)
}

/// A state of a product. In the order of commits: a deletion has the version of the row that it deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    /// The version of the row.
    pub version: i64,
    /// Whether there is no row any more.
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
    /// UpdateProduct, through some instance.
    Api,
    /// A statement, or a transaction, of plain SQL.
    Sql,
}

/// What Postgres says was committed.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// The product.
    pub product: i64,
    /// The state that it went into.
    pub state: State,
    /// What gave it its content; `None` if that was nothing that the checker did.
    pub write: Option<WriteId>,
    /// When the row was written, by the clock of Postgres: some time before the commit.
    pub written: Micros,
}

/// What a writer was told.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    /// The product.
    pub product: i64,
    /// The state that it went into.
    pub state: State,
    /// How.
    pub kind: Kind,
    /// Nothing was committed before this.
    pub sent: Micros,
    /// It was committed before this.
    pub acked: Micros,
}

/// The tier that an answer says it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// The memory of the instance.
    Hot,
    /// Redis.
    Redis,
    /// Postgres.
    Postgres,
    /// Not said for this product: a batch names the farthest tier of all its products.
    Unsaid,
}

/// What a reader asks for beyond the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    Plain,
    /// `min_version`
    MinVersion(i64),
    /// `max_staleness`
    MaxStaleness(Micros),
    /// `latest`
    Latest,
}

/// What a reader was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A product of this version. `None`: content that no write of the checker gives.
    Product(i64, Option<WriteId>),
    /// That there is no such product.
    Absent,
    /// That Postgres has not reached the version that was asked for.
    NotReached,
}

/// One product in one answer.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// The product.
    pub product: i64,
    /// Which instance answered.
    pub instance: u8,
    /// The tier that it named.
    pub tier: Tier,
    /// How long after its time the request was sent.
    pub late: u32,
    /// What was asked for.
    pub wish: Wish,
    /// What was answered.
    pub seen: Seen,
    /// Whether the answer says that it is stale.
    pub stale: bool,
    /// When the request was sent.
    pub begin: Micros,
    /// When the answer was there.
    pub end: Micros,
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What was asked, and how it went wrong, without what differs from call to call.
    pub what: String,
    /// What was asked.
    pub request: Request,
    /// When it was due.
    pub due: Micros,
    /// When it had failed.
    pub end: Micros,
}

/// What a request was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A read of this product, through this instance.
    Read(i64, u8, Wish),
    /// A batch, through this instance.
    Batch(u8),
    /// UpdateProduct, through this instance.
    Update(u8),
    /// Plain SQL.
    Sql,
}

/// Everything that was recorded.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// How many instances there are.
    pub instances: u8,
    /// What was committed, in any order.
    pub committed: Vec<Committed>,
    /// What writers were told, in any order.
    pub acks: Vec<Ack>,
    /// What readers were told, in any order.
    pub reads: Vec<Read>,
}

/// What an answer shows of a product.
#[must_use]
pub fn seen(product: &Product) -> Seen {
    let hundredths = |money: &Money| money.units * 100 + i64::from(money.nanos / 10_000_000);
    let price = product.price.as_ref().map_or(-1, hundredths);
    Seen::Product(product.version, write_of(&product.name, price))
}
