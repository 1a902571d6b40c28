//! Negative controls: a test turns a protection off, and sees the harm that it prevents. A protection that
//! nothing fails without is not tested.
//!
//! Only with the feature `test-hooks`; without it [`Controls`] is empty, and every protection holds.

#[cfg(feature = "test-hooks")]
use std::sync::Arc;
#[cfg(feature = "test-hooks")]
use std::sync::atomic::{AtomicU16, Ordering};

/// What keeps the tiers coherent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Redis keeps what is newer.
    RedisVersions,
    /// A slot of memory keeps what is newer.
    SlotVersions,
    /// A load is not kept when something newer was committed meanwhile.
    LoadFloor,
    /// Only the holder of the lease fills Redis.
    FillLease,
    /// What writes left undone, and what SQL wrote, is applied to Redis.
    Relay,
    /// An instance notices that changes were pruned which it has not read.
    GapDetection,
    /// What a Redis holds that may have lost writes is not taken for current.
    RedisHistory,
    /// An instance notices that PostgreSQL went back.
    Epoch,
    /// A version that PostgreSQL has not given out is not served.
    VersionCeiling,
    /// What is read from the outbox is applied.
    ChangeFeed,
    /// What other instances publish is applied.
    Hints,
}

/// The protections of one instance that are turned off.
#[derive(Clone, Debug, Default)]
pub struct Controls {
    #[cfg(feature = "test-hooks")]
    off: Arc<AtomicU16>,
}

#[cfg(feature = "test-hooks")]
impl Controls {
    /// Turns a protection off, for good.
    pub fn turn_off(&self, protection: Protection) {
        self.off.fetch_or(1 << protection as u8, Ordering::SeqCst);
    }

    pub(crate) fn holds(&self, protection: Protection) -> bool {
        self.off.load(Ordering::SeqCst) & (1 << protection as u8) == 0
    }
}

#[cfg(not(feature = "test-hooks"))]
impl Controls {
    pub(crate) fn holds(&self, _protection: Protection) -> bool {
        true
    }
}
