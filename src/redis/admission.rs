//! Admission of callers' commands to Redis: a bound on those in flight, and a fair queue for the rest.
//!
//! A server runs one command at a time. A command behind a thousand others waits for them, and its breaker would count that as
//! late. So the number of keys in flight is bounded, and beyond it callers take turns, one command each (round robin). A
//! command that waits for longer than the timeout fails, and its call continues without Redis.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::caller::Caller;

/// Keys of the commands in flight. A script takes about 20 us, so all of them take 10 ms. Too high: a single command waits behind
/// them. Too low: the round-trip time to Redis limits the throughput.
pub(super) const AT_ONCE: usize = 512;
/// Queued commands of all callers. Each belongs to a call in flight or to a chunk of one; the number of calls is bounded, too.
pub(super) const QUEUED: usize = 16_384;

#[derive(Debug)]
pub(super) struct CommandAdmission {
    at_once: usize,
    queued: usize,
    /// How long a command may wait to be sent.
    timeout: Duration,
    state: Mutex<AdmissionState>,
}

#[derive(Debug, Default)]
struct AdmissionState {
    in_flight: usize,
    waiting: usize,
    queues: HashMap<Caller, VecDeque<WaitingCommand>, RandomState>,
    /// The callers with queued commands, in the order of their turns.
    turns: VecDeque<Caller>,
}

#[derive(Debug)]
struct WaitingCommand {
    keys: usize,
    admitted: oneshot::Sender<Admitted>,
}

/// The permission to have a command in flight. Released when dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    keys: usize,
    admission: Option<Arc<CommandAdmission>>,
}

impl CommandAdmission {
    pub(super) fn new(timeout: Duration) -> Arc<Self> {
        Self::bounded(AT_ONCE, QUEUED, timeout)
    }

    fn bounded(at_once: usize, queued: usize, timeout: Duration) -> Arc<Self> {
        Arc::new(Self { at_once, queued, timeout, state: Mutex::default() })
    }

    /// Waits until a command with this many keys may be sent. `None` after the timeout, or when the full queue drops the command.
    pub(super) async fn admit(self: &Arc<Self>, caller: Caller, keys: usize) -> Option<Admitted> {
        match self.enter(caller, keys) {
            Ok(admitted) => Some(admitted),
            Err(admitted) => tokio::time::timeout(self.timeout, admitted).await.ok()?.ok(),
        }
    }

    /// Keys in flight, and queued commands.
    pub(super) fn counts(&self) -> [u64; 2] {
        let state = self.state.lock();
        [state.in_flight as u64, state.waiting as u64]
    }

    fn enter(
        self: &Arc<Self>,
        caller: Caller,
        keys: usize,
    ) -> Result<Admitted, oneshot::Receiver<Admitted>> {
        let mut state = self.state.lock();
        if state.turns.is_empty() && state.has_room(keys, self.at_once) {
            state.in_flight += keys;
            return Ok(Admitted { keys, admission: Some(Arc::clone(self)) });
        }
        let (admitted, receiver) = oneshot::channel();
        let queue = state.queues.entry(caller).or_default();
        queue.push_back(WaitingCommand { keys, admitted });
        if queue.len() == 1 {
            state.turns.push_back(caller);
        }
        state.waiting += 1;
        if state.waiting > self.queued {
            state.evict_one();
        }
        Err(receiver)
    }

    fn admit_next(self: &Arc<Self>, keys: usize) {
        let mut state = self.state.lock();
        state.in_flight -= keys;
        while let Some(next) = state.take_next(self.at_once) {
            let keys = next.keys;
            let admitted = Admitted { keys, admission: Some(Arc::clone(self)) };
            match next.admitted.send(admitted) {
                Ok(()) => state.in_flight += keys,
                // The caller has stopped waiting.
                Err(mut refused) => refused.admission = None,
            }
        }
    }
}

impl AdmissionState {
    /// A command with more keys than the bound is sent alone.
    fn has_room(&self, keys: usize, at_once: usize) -> bool {
        self.in_flight == 0 || self.in_flight + keys <= at_once
    }

    fn take_next(&mut self, at_once: usize) -> Option<WaitingCommand> {
        let caller = *self.turns.front()?;
        let keys = self.queues.get(&caller)?.front()?.keys;
        if !self.has_room(keys, at_once) {
            return None;
        }
        self.turns.pop_front();
        let queue = self.queues.get_mut(&caller)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&caller);
        } else {
            self.turns.push_back(caller);
        }
        self.waiting -= usize::from(next.is_some());
        next
    }

    /// Drops the last command of the caller with the most queued commands.
    fn evict_one(&mut self) {
        let most = self.queues.iter().max_by_key(|(_, queue)| queue.len());
        let Some(caller) = most.map(|(caller, _)| *caller) else { return };
        let Some(queue) = self.queues.get_mut(&caller) else { return };
        self.waiting -= usize::from(queue.pop_back().is_some());
        if queue.is_empty() {
            self.queues.remove(&caller);
            self.turns.retain(|waiting| *waiting != caller);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(admission) = self.admission.take() {
            admission.admit_next(self.keys);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn caller(connection: u64) -> Caller {
        Caller::of_connection(connection)
    }

    #[tokio::test]
    async fn callers_take_turns_however_many_commands_one_of_them_queues() {
        let admission = CommandAdmission::bounded(2, 1_000, MINUTE);
        let mut first = Box::pin(admission.admit(caller(1), 2));
        let first = first.as_mut().now_or_never().flatten().expect("room");
        let mut many: Vec<_> = (0..100).map(|_| Box::pin(admission.admit(caller(1), 2))).collect();
        for waiting in &mut many {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        let mut lone = Box::pin(admission.admit(caller(2), 1));
        assert!(lone.as_mut().now_or_never().is_none());
        assert_eq!(admission.counts(), [2, 101]);
        drop(first);
        let second = many[0].as_mut().now_or_never().flatten().expect("its turn");
        drop(second);
        let lone = lone.now_or_never().flatten().expect("not behind the hundred");
        drop((lone, many));
        assert!(admission.admit(caller(3), 1).now_or_never().flatten().is_some());
        assert_eq!(admission.counts(), [0, 0], "dropped waiters release what they held");
    }

    #[tokio::test]
    async fn a_full_queue_drops_the_last_command_of_the_caller_with_the_most() {
        let admission = CommandAdmission::bounded(1, 2, MINUTE);
        let _in_flight = admission.admit(caller(1), 1).await.expect("room");
        let mut waiting = [1, 1, 2].map(|number| Box::pin(admission.admit(caller(number), 1)));
        assert!(waiting[0].as_mut().now_or_never().is_none());
        assert!(waiting[1].as_mut().now_or_never().is_none());
        assert!(waiting[2].as_mut().now_or_never().is_none());
        assert!(matches!(waiting[1].as_mut().now_or_never(), Some(None)), "refused at once");
        assert!(waiting[0].as_mut().now_or_never().is_none());
    }
}
