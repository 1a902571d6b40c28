//! One cached answer: a product, encoded once, or the knowledge that there is none; with its revision and
//! how long it may be used.

use std::time::{Duration, Instant, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::product::{Product, Revision, Version};
use crate::proto;

/// The number of `BatchGetProductsResponse.products`.
const PRODUCTS_FIELD: u32 = 1;

/// Clocks of other machines may be ahead of ours by this much.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(1);

/// A cached answer, immutable and cheap to clone.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which state of the product this is.
    pub revision: Revision,
    /// When Postgres was last known to hold this revision: just before the statement that showed it.
    pub known_at: Instant,
    /// How long it may be used.
    pub ttl: Ttl,
    /// By how much `known_at` may be too late: nothing for what this process loaded itself.
    clock_doubt: Duration,
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
        let revision = Revision::live(product.version);
        Self {
            revision,
            known_at,
            ttl,
            clock_doubt: Duration::ZERO,
            in_doubt: false,
            frame: frame(product),
        }
    }

    /// The answer that there is no product, and was none after `version`.
    #[must_use]
    pub fn tombstone(version: Version, known_at: Instant, ttl: Ttl) -> Self {
        let revision = Revision::gone_after(version);
        Self {
            revision,
            known_at,
            ttl,
            clock_doubt: Duration::ZERO,
            in_doubt: false,
            frame: Bytes::new(),
        }
    }

    /// An entry from the frame that another one held, stamped by any machine's clock. `None` when the frame is not one: an encoded
    /// product behind its key and length, or nothing for a tombstone.
    #[must_use]
    pub fn from_frame(
        revision: Revision,
        known_at: Instant,
        ttl: Ttl,
        frame: Bytes,
    ) -> Option<Self> {
        let plausible = if revision.deleted {
            frame.is_empty()
        } else {
            body_start(&frame).is_some_and(|start| start < frame.len())
        };
        plausible.then_some(Self {
            revision,
            known_at,
            ttl,
            clock_doubt: MAX_CLOCK_SKEW,
            in_doubt: false,
            frame,
        })
    }

    /// The product as `BatchGetProductsResponse` holds it: key, length, encoded product. Empty for a
    /// tombstone. Such frames concatenate to the response.
    #[must_use]
    pub fn frame(&self) -> &Bytes {
        &self.frame
    }

    /// The encoded product, a slice of the frame; `None` for a tombstone.
    #[must_use]
    pub fn body(&self) -> Option<Bytes> {
        (!self.revision.deleted).then(|| self.frame.slice(body_start(&self.frame).unwrap_or(0)..))
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
        now.saturating_duration_since(self.known_at) > self.ttl.soft * percent / 100
    }

    /// Since when it was current at the latest, whatever the clock of the machine that loaded it says.
    fn surely_known_at(&self) -> Option<Instant> {
        self.known_at.checked_sub(self.clock_doubt)
    }

    /// Whether it must not be used any more.
    #[must_use]
    pub fn past_hard(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.known_at) > self.ttl.hard
    }
}

/// Where the encoded product starts: behind the one byte of the key and the varint of the length.
fn body_start(frame: &[u8]) -> Option<usize> {
    let mut rest = frame.get(1..)?;
    let length = prost::encoding::decode_varint(&mut rest).ok()?;
    (u64::try_from(rest.len()) == Ok(length)).then(|| frame.len() - rest.len())
}

fn frame(product: &Product) -> Bytes {
    let message = to_message(product);
    let length = message.encoded_len();
    let head = key_len(PRODUCTS_FIELD) + encoded_len_varint(length as u64);
    let mut buffer = BytesMut::with_capacity(head + length);
    encode_key(PRODUCTS_FIELD, WireType::LengthDelimited, &mut buffer);
    encode_varint(length as u64, &mut buffer);
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
