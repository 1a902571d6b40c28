//! Fault injection for background tasks.
//!
//! Only with the feature `test-hooks`; without it [`Faults`] is empty and injects nothing.

#[cfg(feature = "test-hooks")]
use std::collections::HashMap;

#[cfg(feature = "test-hooks")]
use tokio::sync::watch;

use crate::metrics::BackgroundTask;

/// How an injected fault ends a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Error,
    Panic,
}

/// Faults that are still to be injected: for each task how it fails, and how many times.
#[derive(Debug, Default)]
pub struct Faults {
    #[cfg(feature = "test-hooks")]
    pending: watch::Sender<HashMap<BackgroundTask, (Fault, usize)>>,
}

#[cfg(feature = "test-hooks")]
impl Faults {
    /// Makes `task` fail `times` times: at once, and then after each restart.
    pub fn inject(&self, task: BackgroundTask, fault: Fault, times: usize) {
        self.pending.send_modify(|pending| {
            pending.insert(task, (fault, times));
        });
    }

    /// Resolves when `task` is to fail with an error; panics when it is to panic.
    pub(super) async fn strike(&self, task: BackgroundTask) -> String {
        let mut pending = self.pending.subscribe();
        loop {
            if let Some(fault) = self.take(task) {
                return raise(fault);
            }
            // Never fails: `self` is the sender.
            let _ = pending.changed().await;
        }
    }

    /// Panics if a fault is pending for `task`.
    pub(super) fn strike_now(&self, task: BackgroundTask) {
        if let Some(fault) = self.take(task) {
            panic!("{}", raise(fault));
        }
    }

    fn take(&self, task: BackgroundTask) -> Option<Fault> {
        let mut taken = None;
        self.pending.send_if_modified(|pending| {
            if let Some((fault, times)) = pending.get_mut(&task).filter(|(_, times)| *times > 0) {
                *times -= 1;
                taken = Some(*fault);
            }
            // No waiter is interested in a smaller count.
            false
        });
        taken
    }
}

#[cfg(feature = "test-hooks")]
fn raise(fault: Fault) -> String {
    const REASON: &str = "a test made it fail";
    match fault {
        Fault::Error => REASON.to_owned(),
        Fault::Panic => panic!("{REASON}"),
    }
}

#[cfg(not(feature = "test-hooks"))]
impl Faults {
    pub(super) async fn strike(&self, _task: BackgroundTask) -> String {
        std::future::pending().await
    }

    pub(super) fn strike_now(&self, _task: BackgroundTask) {}
}
