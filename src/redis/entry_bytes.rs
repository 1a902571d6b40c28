//! The format of entries in Redis: a head, then the frame of the encoded product.
//!
//! ```text
//! 0      1      2        10        18        22        26     30
//! format flags  version  known_at  soft TTL  hard TTL  crc32  frame ...
//! ```
//! Numbers are big endian, `known_at` is in milliseconds of Unix time, TTLs are in milliseconds, and the checksum covers all
//! other bytes. The scripts read the first ten bytes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};

use crate::entry::{Entry, MAX_CLOCK_SKEW, Ttl};
use crate::moment::Moment;
use crate::product::{Revision, Version};

const FORMAT: u8 = 1;
const DELETED: u8 = 1;
const CRC_AT: usize = 26;
pub(super) const HEAD: usize = 30;

pub(super) fn encode(entry: &Entry) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEAD + entry.frame().len());
    put_revision(&mut bytes, entry.revision());
    let known_at = entry.known_at().wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    bytes.put_u64(millis(known_at));
    bytes.put_u32(u32::try_from(entry.ttl().soft.as_millis()).unwrap_or(u32::MAX));
    bytes.put_u32(u32::try_from(entry.ttl().hard.as_millis()).unwrap_or(u32::MAX));
    let checksum = checksum(&bytes, entry.frame());
    bytes.put_u32(checksum);
    bytes.put_slice(entry.frame());
    bytes.freeze()
}

/// The first ten bytes of an entry of `revision`, which is all that the scripts read.
pub(super) fn head_of(revision: Revision) -> Bytes {
    let mut head = BytesMut::with_capacity(10);
    put_revision(&mut head, revision);
    head.freeze()
}

fn put_revision(bytes: &mut BytesMut, revision: Revision) {
    bytes.put_u8(FORMAT);
    bytes.put_u8(if revision.deleted { DELETED } else { 0 });
    bytes.put_i64(revision.version.0);
}

/// `None` when the bytes are not a valid entry.
pub(super) fn decode(bytes: &[u8]) -> Option<Entry> {
    let head: &[u8; HEAD] = bytes.first_chunk()?;
    let frame = bytes.get(HEAD..)?;
    let number = |range: std::ops::Range<usize>| {
        head[range].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    if head[0] != FORMAT || head[1] & !DELETED != 0 {
        return None;
    }
    if number(CRC_AT..HEAD) != u64::from(checksum(&head[..CRC_AT], frame)) {
        return None;
    }
    let revision = Revision {
        version: Version(i64::try_from(number(2..10)).ok()?),
        deleted: head[1] == DELETED,
    };
    let ttl = Ttl {
        soft: Duration::from_millis(number(18..22)),
        hard: Duration::from_millis(number(22..26)),
    };
    let known_at = known_at(UNIX_EPOCH.checked_add(Duration::from_millis(number(10..18)))?, ttl);
    Entry::from_frame(revision, known_at, ttl, frame)
}

/// An entry from further in the future than [`MAX_CLOCK_SKEW`] proves that one of the two clocks is wrong, so its age is
/// unknown. It counts as past its soft TTL: it is served and refreshed.
fn known_at(wall: SystemTime, ttl: Ttl) -> Moment {
    match wall.duration_since(SystemTime::now()) {
        Ok(ahead) if ahead > MAX_CLOCK_SKEW => Moment::now().before(ttl.soft),
        _ => Moment::of_wall(wall),
    }
}

fn checksum(head: &[u8], frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(frame);
    hasher.finalize()
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ttl() -> Ttl {
        Ttl { soft: Duration::from_secs(60), hard: Duration::from_secs(3600) }
    }

    #[test]
    fn decode_reverses_encode() {
        let product = Revision::live(Version(7));
        let frame = [0, 0, 0, 0, 1, 7];
        let long_ago = Moment::now().before(Duration::from_secs(10 * 365 * 86_400));
        for entry in [
            Entry::tombstone(Version(i64::MAX), Moment::now(), ttl()),
            Entry::from_frame(product, Moment::now(), ttl(), &frame).expect("a frame"),
            // Older than the uptime of this machine.
            Entry::from_frame(product, long_ago, ttl(), &frame).expect("a frame"),
        ] {
            let back = decode(&encode(&entry)).expect("an entry");
            assert_eq!((back.revision(), back.ttl()), (entry.revision(), entry.ttl()));
            assert_eq!(back.frame(), entry.frame());
            let apart = back.known_at().since(entry.known_at());
            assert!(apart < Duration::from_secs(10), "{apart:?}");
            assert!(entry.known_at() < back.known_at() + Duration::from_secs(10));
        }
    }

    #[test]
    fn an_entry_with_a_changed_or_missing_byte_is_unreadable() {
        let bytes = encode(&Entry::tombstone(Version(7), Moment::now(), ttl()));
        for at in 0..bytes.len() {
            let mut changed = bytes.to_vec();
            changed[at] ^= 0x40;
            assert!(decode(&changed).is_none(), "byte {at} changed");
            assert!(decode(&bytes[..at]).is_none(), "cut after {at} bytes");
        }
    }

    #[test]
    fn an_entry_from_the_future_is_due_for_refresh() {
        let ahead = SystemTime::now() + Duration::from_secs(3600);
        let known_at = known_at(ahead, ttl());
        assert!(known_at.elapsed() >= ttl().soft);
    }
}
