//! When this instance heard of changes before a poll returned them, for the measurement of staleness.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::moment::Moment;
use crate::product::Change;

/// Changes in the log. Of further ones the oldest are forgotten, and count as heard of by the poll.
const MOST: usize = 65_536;

/// A change that was written here or published by another instance.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    pub change: Change,
    pub written_here: bool,
    pub at: Moment,
    /// When memory dropped an older version that it would have served; `None` if it held none.
    pub dropped_at: Option<Moment>,
}

/// Each with the number of the last poll that was sent before.
#[derive(Debug, Default)]
pub(super) struct HeardLog(Mutex<VecDeque<(u64, Heard)>>);

impl HeardLog {
    pub(super) fn push(&self, sent: u64, heard: Heard) {
        let mut log = self.0.lock();
        if log.len() >= MOST {
            log.pop_front();
        }
        log.push_back((sent, heard));
    }

    /// All of them. Those from before the poll are removed: it has returned them, or they were not committed.
    pub(super) fn take(&self, poll: u64) -> Vec<Heard> {
        let mut log = self.0.lock();
        let heard = log.iter().map(|(_, heard)| *heard).collect();
        log.retain(|(sent, _)| *sent >= poll);
        heard
    }
}
