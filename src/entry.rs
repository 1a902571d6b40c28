//! One cached answer: a product, encoded once, or a tombstone; with its revision and its TTLs.

mod attributes;

use std::fmt::{self, Debug, Formatter};
use std::time::Duration;

use bytes::BufMut;
use prost::Message;
use triomphe::ThinArc;

use crate::moment::Moment;
use crate::product::{Price, Product, ProductId, Revision, Version};
use crate::proto;

/// Bytes before a gRPC message: the compressed flag and the length
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, Length-Prefixed-Message).
pub const PREFIX: usize = 5;

/// How far the clocks of other machines may be ahead of this one.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(1);

/// A cached answer, immutable. All clones share one allocation that contains the head and the product's bytes, so that a hit
/// touches few cache lines.
#[derive(Clone)]
pub struct Entry(ThinArc<EntryHead, u8>);

/// The entry without its bytes. A tombstone has no bytes.
#[derive(Clone, Copy, Debug)]
struct EntryHead {
    version: Version,
    known_at: Moment,
    /// Milliseconds in a `u32`, because two `Duration`s would take 32 bytes.
    soft_ms: u32,
    hard_ms: u32,
    /// Whether another machine set `known_at`, which is then up to [`MAX_CLOCK_SKEW`] too late.
    foreign: bool,
    /// Whether Redis may have lost a newer entry.
    suspect: bool,
}

/// How long an entry may be used, counted from `known_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttl {
    /// After it the entry is still served, and refreshed in the background.
    pub soft: Duration,
    /// After it the entry must not be used.
    pub hard: Duration,
}

/// The configured TTLs, before jitter.
#[derive(Clone, Copy, Debug)]
pub struct TtlPolicy {
    /// After this long a cached product is refreshed in the background.
    pub soft: Duration,
    /// For this long past its soft TTL a cached product may still be served.
    pub stale_if_error: Duration,
    /// How long the absence of a product is cached.
    pub tombstone: Duration,
}

impl TtlPolicy {
    /// The TTL of a product, jittered by a tenth, so that products loaded together do not expire together.
    #[must_use]
    pub fn product(&self) -> Ttl {
        let soft = self.soft.mul_f64(rand::random_range(0.9..1.1));
        Ttl { soft, hard: soft + self.stale_if_error }
    }

    /// An upper bound for the time that any entry may be used, with the clock skew.
    #[must_use]
    pub fn longest(&self) -> Duration {
        (self.soft.mul_f64(1.1) + self.stale_if_error).max(self.tombstone) + MAX_CLOCK_SKEW
    }

    /// The TTL of a tombstone, jittered downwards.
    #[must_use]
    pub fn tombstone(&self) -> Ttl {
        let ttl = self.tombstone.mul_f64(rand::random_range(0.9..1.0));
        Ttl { soft: ttl, hard: ttl }
    }
}

impl Entry {
    /// The answer that `product` exists.
    #[must_use]
    pub fn live(product: &Product, known_at: Moment, ttl: Ttl) -> Self {
        Self::new(EntryHead::new(product.version, known_at, ttl), &frame(product))
    }

    /// The answer that the product does not exist, and did not exist after `version`.
    #[must_use]
    pub fn tombstone(version: Version, known_at: Moment, ttl: Ttl) -> Self {
        Self::new(EntryHead::new(version, known_at, ttl), &[])
    }

    fn new(head: EntryHead, frame: &[u8]) -> Self {
        Self(ThinArc::from_header_and_slice(head, frame))
    }

    /// An entry from the frame of another one, with a `known_at` from any machine's clock. `None` when the frame is invalid: it
    /// must be a message behind its prefix, or empty for a tombstone.
    #[must_use]
    pub fn from_frame(
        revision: Revision,
        known_at: Moment,
        ttl: Ttl,
        frame: &[u8],
    ) -> Option<Self> {
        let plausible = match frame.split_first_chunk() {
            Some((before, message)) => *before == prefix(message.len()) && !message.is_empty(),
            None => frame.is_empty(),
        };
        let head = EntryHead { foreign: true, ..EntryHead::new(revision.version, known_at, ttl) };
        (plausible && frame.is_empty() == revision.deleted).then(|| Self::new(head, frame))
    }

    fn head(&self) -> &EntryHead {
        &self.0.header.header
    }

    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision { version: self.head().version, deleted: self.is_tombstone() }
    }

    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.frame().is_empty()
    }

    /// When Postgres was last known to hold this revision: the moment just before the statement that read it.
    #[must_use]
    pub fn known_at(&self) -> Moment {
        self.head().known_at
    }

    /// The product as GetProduct sends it: a gRPC message behind its prefix. Empty for a tombstone.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.0.slice
    }

    /// The encoded product; `None` for a tombstone.
    #[must_use]
    pub fn product(&self) -> Option<&[u8]> {
        self.frame().get(PREFIX..)
    }

    /// Whether the entry can answer a read of `id`. False when it contains another product.
    #[must_use]
    pub fn is_of(&self, id: ProductId) -> bool {
        // prost encodes fields in the order of their numbers, and `id` is field 1.
        const ID: u8 = 1 << 3;
        match self.product() {
            None => true,
            Some([ID, rest @ ..]) => {
                prost::encoding::decode_varint(&mut &rest[..]) == Ok(id.get().cast_unsigned())
            }
            Some(_) => false,
        }
    }

    /// Whether the other entry has the same revision and the same contents.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.revision() == other.revision() && self.frame() == other.frame()
    }

    #[must_use]
    pub fn ttl(&self) -> Ttl {
        let millis = |ms: u32| Duration::from_millis(ms.into());
        Ttl { soft: millis(self.head().soft_ms), hard: millis(self.head().hard_ms) }
    }

    /// A copy that is marked as suspect.
    #[must_use]
    pub fn suspect(&self) -> Self {
        Self::new(EntryHead { suspect: true, ..*self.head() }, self.frame())
    }

    /// Whether Redis may have lost a newer entry. A suspect entry is served only as a fallback.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.head().suspect
    }

    #[must_use]
    pub fn past_soft(&self, now: Moment) -> bool {
        now > self.known_at() + self.ttl().soft
    }

    /// Whether this percentage of its soft TTL has passed.
    #[must_use]
    pub fn is_due(&self, percent: u32, now: Moment) -> bool {
        now > self.known_at() + self.ttl().soft * percent / 100
    }

    /// A lower bound for the true `known_at`, even if the clock of the machine that loaded the entry was ahead.
    #[must_use]
    pub fn earliest_known_at(&self) -> Moment {
        match self.head().foreign {
            true => self.known_at().before(MAX_CLOCK_SKEW),
            false => self.known_at(),
        }
    }

    #[must_use]
    pub fn past_hard(&self, now: Moment) -> bool {
        now > self.known_at() + self.ttl().hard
    }
}

impl Debug for Entry {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let bytes = self.frame().len();
        f.debug_struct("Entry").field("head", self.head()).field("bytes", &bytes).finish()
    }
}

impl EntryHead {
    fn new(version: Version, known_at: Moment, ttl: Ttl) -> Self {
        let millis = |ttl: Duration| u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX);
        let (soft_ms, hard_ms) = (millis(ttl.soft), millis(ttl.hard));
        Self { version, known_at, soft_ms, hard_ms, foreign: false, suspect: false }
    }
}

/// The gRPC prefix of a message of this length.
///
/// # Panics
/// Above 4 GiB. The limits on messages are far below.
#[must_use]
pub fn prefix(length: usize) -> [u8; PREFIX] {
    let [a, b, c, d] = u32::try_from(length).expect("far below 4 GiB").to_be_bytes();
    [0, a, b, c, d]
}

fn frame(product: &Product) -> Vec<u8> {
    let message = to_message(product);
    let length = message.encoded_len();
    let mut frame = Vec::with_capacity(PREFIX + length);
    frame.put_slice(&prefix(length));
    message.encode_raw(&mut frame);
    frame
}

fn to_message(product: &Product) -> proto::Product {
    proto::Product {
        id: product.id.get(),
        name: product.name.clone(),
        price: product.price.map(to_money),
        description: product.description.clone(),
        version: product.version.0,
        create_time: product.create_time.map(prost_types::Timestamp::from),
        update_time: product.update_time.map(prost_types::Timestamp::from),
        attributes: product
            .attributes
            .as_ref()
            .map(|attributes| attributes::to_struct(&attributes.0)),
    }
}

fn to_money(price: Price) -> proto::Money {
    let (units, nanos) = price.money();
    proto::Money { currency_code: price.currency().code().to_owned(), units, nanos }
}

/// The freshness that a caller requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Any entry that a cache may serve.
    Cached,
    /// This version or a newer one.
    MinVersion {
        /// The oldest acceptable version.
        version: Version,
        /// When the request arrived. An entry read from Postgres after it is accepted at any version: there is no newer one.
        arrived: Moment,
    },
    /// An entry known to be current at this moment or later.
    KnownSince(Moment),
    /// An entry of whose soft TTL less than this percentage has passed.
    NotDue { percent: u32 },
}

impl Freshness {
    /// Whether `entry` is fresh enough, judged by its version and `known_at` alone.
    #[must_use]
    pub fn accepts(&self, entry: &Entry) -> bool {
        match *self {
            Self::Cached => true,
            Self::MinVersion { version, arrived } => {
                entry.revision().version >= version || entry.earliest_known_at() >= arrived
            }
            Self::KnownSince(moment) => entry.earliest_known_at() >= moment,
            Self::NotDue { percent } => !entry.is_due(percent, Moment::now()),
        }
    }
}
