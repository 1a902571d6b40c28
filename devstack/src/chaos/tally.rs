//! Counts of what the proxy did, with which a test proves that its fault happened.

use std::sync::atomic::{AtomicU64, Ordering};

use super::plan::Way;

/// What a [`ChaosProxy`](crate::ChaosProxy) did since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Connections accepted, refused ones included.
    pub accepted: u64,
    /// Connections reset by a cut, or at the end of a black hole that had discarded some of their
    /// bytes.
    pub cut: u64,
    /// New connections reset at once because of a cut.
    pub refused: u64,
    pub to_server: LaneCounts,
    pub to_client: LaneCounts,
}

/// The bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LaneCounts {
    /// Delivered, also late.
    pub passed: u64,
    /// Discarded by a black hole.
    pub swallowed: u64,
    /// Received by the proxy under a delay.
    pub delayed: u64,
}

#[derive(Default)]
pub(super) struct Tally {
    pub(super) accepted: AtomicU64,
    pub(super) cut: AtomicU64,
    pub(super) refused: AtomicU64,
    to_server: LaneTally,
    to_client: LaneTally,
}

#[derive(Default)]
pub(super) struct LaneTally {
    pub(super) passed: AtomicU64,
    pub(super) swallowed: AtomicU64,
    pub(super) delayed: AtomicU64,
}

impl Tally {
    pub(super) fn add(count: &AtomicU64, more: u64) {
        count.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn lane(&self, way: Way) -> &LaneTally {
        match way {
            Way::ToServer => &self.to_server,
            Way::ToClient => &self.to_client,
        }
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            accepted: self.accepted.load(Ordering::Relaxed),
            cut: self.cut.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            to_server: self.to_server.counts(),
            to_client: self.to_client.counts(),
        }
    }
}

impl LaneTally {
    fn counts(&self) -> LaneCounts {
        LaneCounts {
            passed: self.passed.load(Ordering::Relaxed),
            swallowed: self.swallowed.load(Ordering::Relaxed),
            delayed: self.delayed.load(Ordering::Relaxed),
        }
    }
}
