//! One cached answer: a product, encoded once, or the knowledge that there is none; with its revision and
//! how long it may be used.

use std::time::{Duration, Instant, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::product::{Product, ProductId, Revision, Version};
use crate::proto;

/// Bytes before a gRPC message: that it is not compressed, and its length
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, Length-Prefixed-Message).
pub const PREFIX: usize = 5;

/// Clocks of other machines may be ahead of ours by this much.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(1);

/// A cached answer, immutable and cheap to clone.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which state of the product this is.
    pub revision: Revision,
    /// When Postgres was last known to hold this revision: just before the statement that showed it.
    pub known_at: Instant,
    /// How long it may be used, in milliseconds: there are many entries, and two `Duration`s are 32 bytes.
    soft_ms: u32,
    hard_ms: u32,
    /// Whether another machine's clock stamped it, so that `known_at` may be too late.
    foreign: bool,
    /// Whether something newer may have been lost.
    in_doubt: bool,
    frame: Bytes,
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
    pub fn live(product: &Product, known_at: Instant, ttl: Ttl) -> Self {
        Self::new(Revision::live(product.version), known_at, ttl, frame(product))
    }

    /// The answer that there is no product, and was none after `version`.
    #[must_use]
    pub fn tombstone(version: Version, known_at: Instant, ttl: Ttl) -> Self {
        Self::new(Revision::gone_after(version), known_at, ttl, Bytes::new())
    }

    fn new(revision: Revision, known_at: Instant, ttl: Ttl, frame: Bytes) -> Self {
        let millis = |ttl: Duration| u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX);
        let (soft_ms, hard_ms) = (millis(ttl.soft), millis(ttl.hard));
        Self { revision, known_at, soft_ms, hard_ms, foreign: false, in_doubt: false, frame }
    }

    /// An entry from the frame that another one held, stamped by any machine's clock. `None` when the frame is not
    /// one: a product's message behind its prefix, or nothing for a tombstone.
    #[must_use]
    pub fn from_frame(
        revision: Revision,
        known_at: Instant,
        ttl: Ttl,
        frame: Bytes,
    ) -> Option<Self> {
        let plausible = match frame.split_first_chunk() {
            Some((before, message)) => *before == prefix(message.len()) && !message.is_empty(),
            None => frame.is_empty(),
        };
        (plausible && frame.is_empty() == revision.deleted)
            .then(|| Self { foreign: true, ..Self::new(revision, known_at, ttl, frame) })
    }

    /// The product as GetProduct sends it: a gRPC message behind its prefix. Empty for a tombstone.
    #[must_use]
    pub fn frame(&self) -> &Bytes {
        &self.frame
    }

    /// The encoded product; `None` for a tombstone.
    #[must_use]
    pub fn product(&self) -> Option<&[u8]> {
        self.frame.get(PREFIX..)
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
        Ttl { soft: millis(self.soft_ms), hard: millis(self.hard_ms) }
    }

    /// The same, of which something newer may have been lost.
    #[must_use]
    pub fn in_doubt(self) -> Self {
        Self { in_doubt: true, ..self }
    }

    /// Whether something newer may have been lost. Then it may be served only when nothing better can be had.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// Whether it is due to be refreshed.
    #[must_use]
    pub fn past_soft(&self, now: Instant) -> bool {
        self.is_due(100, now)
    }

    /// Whether it is due to be refreshed when this share of its soft TTL is all that it gets.
    #[must_use]
    pub fn is_due(&self, percent: u32, now: Instant) -> bool {
        let share = u64::from(self.soft_ms) * u64::from(percent) / 100;
        now.saturating_duration_since(self.known_at) > Duration::from_millis(share)
    }

    /// Since when it was current at the latest, whatever the clock of the machine that loaded it says.
    #[must_use]
    pub fn surely_known_at(&self) -> Option<Instant> {
        self.known_at.checked_sub(if self.foreign { MAX_CLOCK_SKEW } else { Duration::ZERO })
    }

    /// Whether it must not be used any more.
    #[must_use]
    pub fn past_hard(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.known_at) > self.ttl().hard
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

fn frame(product: &Product) -> Bytes {
    let message = to_message(product);
    let length = message.encoded_len();
    let mut buffer = BytesMut::with_capacity(PREFIX + length);
    buffer.put_slice(&prefix(length));
    buffer.put(message.encode_to_vec().as_slice());
    buffer.freeze()
}

fn to_message(product: &Product) -> proto::Product {
    let hundredths = product.price.hundredths();
    proto::Product {
        id: product.id.get(),
        name: product.name.clone(),
        price: Some(proto::Money {
            currency_code: product.price.currency().code().to_owned(),
            units: hundredths / 100,
            nanos: i32::try_from(hundredths % 100).expect("below 100") * 10_000_000,
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
        arrived: Instant,
    },
    /// Nothing that was not known to be current at this moment or later.
    KnownSince(Instant),
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
                entry.revision.version >= version || entry.surely_known_at() >= Some(arrived)
            }
            Self::KnownSince(moment) => entry.surely_known_at() >= Some(moment),
            Self::NotDue { percent } => !entry.is_due(percent, Instant::now()),
        }
    }
}

/// The moment in this process' monotonic time that another machine's wall clock calls `wall`. `None` when
/// `wall` lies further back than this clock reaches.
#[must_use]
pub fn instant_of(wall: SystemTime) -> Option<Instant> {
    let age = SystemTime::now().duration_since(wall).unwrap_or_default();
    Instant::now().checked_sub(age)
}

/// The wall clock's name for a moment of the past.
#[must_use]
pub fn wall_of(moment: Instant) -> SystemTime {
    SystemTime::now() - moment.elapsed()
}
