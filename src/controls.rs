//! Negative controls: a test turns a protection off and checks that the fault it prevents occurs. If no test fails without a
//! protection, then no test covers it.
//!
//! Only with the feature `test-hooks`; without it [`Controls`] is empty, and every protection is on.

#[cfg(feature = "test-hooks")]
use std::sync::Arc;
#[cfg(feature = "test-hooks")]
use std::sync::atomic::{AtomicU16, Ordering};

/// A rule that keeps the tiers coherent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Redis never replaces an entry by an older one.
    RedisVersions,
    /// A slot of memory never replaces an entry by an older one.
    SlotVersions,
    /// The result of a load is rejected when it is below the floor: a newer revision was committed since the load began.
    LoadFloor,
    /// Redis accepts a fill only from the holder of the lease.
    FillLease,
    /// The relay applies to Redis the changes that SQL or an incomplete UpdateProduct made.
    Relay,
    /// An instance detects that changes were pruned before it read them.
    GapDetection,
    /// Entries of a Redis that may have lost writes are suspect.
    RedisReplicationId,
    /// An instance detects that PostgreSQL went back to an earlier state.
    Epoch,
    /// A version that PostgreSQL has not assigned is not served.
    VersionCeiling,
    /// Changes read from the outbox are applied to memory.
    ChangeFeed,
    /// Changes that other instances publish are applied to memory.
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
    /// Turns a protection off. It cannot be turned on again.
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
