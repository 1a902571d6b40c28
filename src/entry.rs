//! One cached answer: a product, encoded once, or the knowledge that there is none; with its revision and
//! how long it may be used.

use std::fmt::{self, Debug, Formatter};
use std::time::Duration;

use bytes::BufMut;
use prost::Message;
use triomphe::ThinArc;

use crate::moment::Moment;
use crate::product::{Product, ProductId, Revision, Version};
use crate::proto;

/// Bytes before a gRPC message: that it is not compressed, and its length
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, Length-Prefixed-Message).
pub const PREFIX: usize = 5;

/// Clocks of other machines may be ahead of ours by this much.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(1);

/// A cached answer, immutable. All clones share one allocation, with the product's bytes behind what is known of them: there
/// are many, and each is a few lines of the processor's cache.
#[derive(Clone)]
pub struct Entry(ThinArc<EntryHead, u8>);

/// What is known of an entry's bytes. That there are none is what a tombstone says.
#[derive(Clone, Copy, Debug)]
struct EntryHead {
    version: Version,
    known_at: Moment,
    /// In milliseconds: two `Duration`s are 32 bytes.
    soft_ms: u32,
    hard_ms: u32,
    /// Whether another machine's clock stamped it, so that `known_at` may be too late.
    foreign: bool,
    /// Whether something newer may have been lost.
    suspect: bool,
}

/// How long after `known_at` an entry may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttl {
    /// Past it the entry is served, and refreshed in the background.
    pub soft: Duration,
    /// Past it the entry is gone.
    pub hard: Duration,
}

/// How long entries may be used, before jitter.
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
    /// Of a product; jittered by a tenth, so that what was loaded together does not expire together.
    #[must_use]
    pub fn product(&self) -> Ttl {
        let soft = self.soft.mul_f64(rand::random_range(0.9..1.1));
        Ttl { soft, hard: soft + self.stale_if_error }
    }

    /// The longest that any entry may be used.
    #[must_use]
    pub fn longest(&self) -> Duration {
        (self.soft.mul_f64(1.1) + self.stale_if_error).max(self.tombstone) + MAX_CLOCK_SKEW
    }

    /// Of the absence of one.
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

    /// The answer that there is no product, and was none after `version`.
    #[must_use]
    pub fn tombstone(version: Version, known_at: Moment, ttl: Ttl) -> Self {
        Self::new(EntryHead::new(version, known_at, ttl), &[])
    }

    fn new(head: EntryHead, frame: &[u8]) -> Self {
        Self(ThinArc::from_header_and_slice(head, frame))
    }

    /// An entry from the frame that another one held, stamped by any machine's clock. `None` when the frame is not
    /// one: a product's message behind its prefix, or nothing for a tombstone.
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

    /// Which state of the product this is.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision { version: self.head().version, deleted: self.is_tombstone() }
    }

    /// Whether it says that there is no product.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.frame().is_empty()
    }

    /// When Postgres was last known to hold this revision: just before the statement that showed it.
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

    /// Whether it can be the answer to a read of `id`: not when it holds another product.
    #[must_use]
    pub fn is_of(&self, id: ProductId) -> bool {
        // Fields are encoded in the order of their numbers, and `id` is the first.
        const ID: u8 = 1 << 3;
        match self.product() {
            None => true,
            Some([ID, rest @ ..]) => {
                prost::encoding::decode_varint(&mut &rest[..]) == Ok(id.get().cast_unsigned())
            }
            Some(_) => false,
        }
    }

    /// How long it may be used after `known_at`.
    #[must_use]
    pub fn ttl(&self) -> Ttl {
        let millis = |ms: u32| Duration::from_millis(ms.into());
        Ttl { soft: millis(self.head().soft_ms), hard: millis(self.head().hard_ms) }
    }

    /// The same, of which something newer may have been lost.
    #[must_use]
    pub fn suspect(&self) -> Self {
        Self::new(EntryHead { suspect: true, ..*self.head() }, self.frame())
    }

    /// Whether something newer may have been lost. Then it may be served only when nothing better can be had.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.head().suspect
    }

    /// Whether it is due to be refreshed.
    #[must_use]
    pub fn past_soft(&self, now: Moment) -> bool {
        now > self.known_at() + self.ttl().soft
    }

    /// Whether it is due to be refreshed when this share of its soft TTL is all that it gets.
    #[must_use]
    pub fn is_due(&self, percent: u32, now: Moment) -> bool {
        now > self.known_at() + self.ttl().soft * percent / 100
    }

    /// Since when it was current at the latest, whatever the clock of the machine that loaded it says.
    #[must_use]
    pub fn surely_known_at(&self) -> Moment {
        match self.head().foreign {
            true => self.known_at().before(MAX_CLOCK_SKEW),
            false => self.known_at(),
        }
    }

    /// Whether it must not be used any more.
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

/// What stands before a message of this length.
///
/// # Panics
/// Above 4 GiB, which no limit of ours lets happen.
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
    let (units, nanos) = product.price.money();
    proto::Product {
        id: product.id.get(),
        name: product.name.clone(),
        price: Some(proto::Money {
            currency_code: product.price.currency().code().to_owned(),
            units,
            nanos,
        }),
        description: product.description.clone(),
        version: product.version.0,
        create_time: Some(prost_types::Timestamp::from(product.create_time)),
        update_time: Some(prost_types::Timestamp::from(product.update_time)),
    }
}

/// How fresh a caller wants an answer to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Whatever the caches may serve.
    Cached,
    /// Nothing older than this version; the request arrived at `arrived`.
    MinVersion {
        /// The oldest version that will do.
        version: Version,
        /// What Postgres said after this moment is as new as it gets.
        arrived: Moment,
    },
    /// Nothing that was not known to be current at this moment or later.
    KnownSince(Moment),
    /// Nothing that is due to be refreshed once this share of its own soft TTL has passed.
    NotDue {
        /// The share.
        percent: u32,
    },
}

impl Freshness {
    /// Whether `entry` is what the caller may be given, as far as versions and `known_at` tell.
    #[must_use]
    pub fn accepts(&self, entry: &Entry) -> bool {
        match *self {
            Self::Cached => true,
            Self::MinVersion { version, arrived } => {
                entry.revision().version >= version || entry.surely_known_at() >= arrived
            }
            Self::KnownSince(moment) => entry.surely_known_at() >= moment,
            Self::NotDue { percent } => !entry.is_due(percent, Moment::now()),
        }
    }
}
