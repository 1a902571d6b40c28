//! Who stays in memory: mini-moka decides (TinyLFU: Einziger, Friedman, Manes, ACM TOS 2017), on a thread of its own.
//!
//! Its cache for one thread takes less than two thirds of the memory of its concurrent one, and has none of that one's
//! faults. Whoever reads or loads only leaves a note; what follows from it happens within [`MAINTENANCE_INTERVAL`].
//!
//! When the thread panics it is restarted with an empty policy, which is told again of every key of the table. Until then
//! the table takes some more keys (`slots.rs`) and then no more; reads and loads do not wait for the thread.

use std::cell::RefCell;
use std::iter;
use std::mem::{self, ManuallyDrop};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ahash::RandomState;
use crossbeam_queue::{ArrayQueue, SegQueue};
use mini_moka::unsync::Cache;
use parking_lot::Mutex;

use crate::metrics::BackgroundTask;
use crate::product::ProductId;
use crate::supervisor::{Runs, Supervisor, panic_message};

/// Notes of reads that may wait; more are lost, which makes the sample smaller.
const SAMPLED_READS: usize = 1_024;
/// So many notes are worth waking the thread for.
const WAKE_AT: usize = 256;
/// For how long notes are collected, unless there are many. What came meanwhile is read from memory at least for
/// that long, admitted or not.
const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(20);

/// Those who have a slot. Dropping this ends the thread.
#[derive(Debug)]
pub(super) struct EvictionPolicy {
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

/// Where notes are left for the thread.
#[derive(Debug)]
struct Mailbox {
    reads: ArrayQueue<ProductId>,
    inserted: SegQueue<ProductId>,
    count_requests: Mutex<Vec<mpsc::Sender<u64>>>,
    /// Whether the thread sleeps until it is woken; else it looks here soon.
    asleep: AtomicBool,
    closed: AtomicBool,
}

/// The key of a slot. mini-moka has no listener for evictions; dropping this is one.
#[derive(PartialEq, Eq, Hash)]
struct Key(ProductId);

thread_local! {
    /// Whom mini-moka has dropped, on its thread.
    static EVICTED: RefCell<Vec<ProductId>> = const { RefCell::new(Vec::new()) };
}

impl Drop for Key {
    fn drop(&mut self) {
        EVICTED.with_borrow_mut(|gone| gone.push(self.0));
    }
}

/// The table, as the policy sees it.
struct Callbacks<K, E> {
    capacity: u64,
    /// Calls its argument with every key that is held.
    keys: K,
    /// Removes a key.
    evict: E,
}

type Policy = Cache<Key, (), RandomState>;

impl EvictionPolicy {
    /// No key yet. `evict` is called for each key that has to go, `keys` to list those that the table holds.
    pub(super) fn new(
        capacity: u64,
        keys: impl Fn(&mut dyn FnMut(ProductId)) + Send + 'static,
        evict: impl Fn(ProductId) + Send + 'static,
        supervisor: &Supervisor,
    ) -> Self {
        let (callbacks, runs) =
            (Callbacks { capacity, keys, evict }, supervisor.begin(BackgroundTask::EvictionPolicy));
        let mailbox = Arc::new(Mailbox {
            reads: ArrayQueue::new(SAMPLED_READS),
            inserted: SegQueue::new(),
            count_requests: Mutex::default(),
            asleep: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&mailbox);
        let thread = thread::Builder::new()
            .name("hot-eviction".to_owned())
            .spawn(move || of_thread.run_supervised(&callbacks, runs))
            .expect("a process that can serve can start a thread");
        Self { mailbox, thread: Some(thread) }
    }

    /// Takes note that `id` was read.
    pub(super) fn record_read(&self, id: ProductId) {
        // With no room left it is as if it had not been in the sample.
        let _ = self.mailbox.reads.push(id);
        // Awake, the thread comes by itself, and is not to be kept busy with a sample.
        if self.mailbox.reads.len() >= WAKE_AT && self.mailbox.asleep.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    /// Takes note that `id` has a slot now.
    pub(super) fn record_inserted(&self, id: ProductId) {
        self.mailbox.inserted.push(id);
        let many = self.mailbox.inserted.len() >= WAKE_AT;
        if many || self.mailbox.asleep.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// How many keys the policy holds once it has seen to every note that was left before; 0 after the thread has ended.
    pub(super) fn count(&self) -> u64 {
        loop {
            let (answer, count) = mpsc::channel();
            {
                let mut count_requests = self.mailbox.count_requests.lock();
                if self.mailbox.closed.load(Ordering::SeqCst) {
                    return 0;
                }
                count_requests.push(answer);
            }
            self.wake();
            // Without an answer the thread has panicked, and is asked again after its restart.
            if let Ok(count) = count.recv() {
                return count;
            }
        }
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for EvictionPolicy {
    fn drop(&mut self) {
        self.mailbox.closed.store(true, Ordering::SeqCst);
        self.wake();
        // If it panicked, that has been reported.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Mailbox {
    /// Serves until the cache is dropped, or until restarts are given up: then nothing is admitted or evicted any more, and
    /// the instance stops.
    fn run_supervised(
        &self,
        callbacks: &Callbacks<impl Fn(&mut dyn FnMut(ProductId)), impl Fn(ProductId)>,
        mut runs: Runs,
    ) {
        let mut restarted = false;
        // Each run has a policy of its own: none is used after a panic.
        while let Err(panic) =
            catch_unwind(AssertUnwindSafe(|| self.serve(callbacks, &runs, restarted)))
        {
            // The keys of the policy that was dropped; the table still holds them.
            EVICTED.take();
            let Some(pause) = runs.ended(&panic_message(&*panic)) else { return self.close() };
            self.pause(pause);
            runs.restarted();
            restarted = true;
        }
    }

    fn serve(
        &self,
        callbacks: &Callbacks<impl Fn(&mut dyn FnMut(ProductId)), impl Fn(ProductId)>,
        runs: &Runs,
        restarted: bool,
    ) {
        let mut policy =
            Cache::builder().max_capacity(callbacks.capacity).build_with_hasher(RandomState::new());
        if restarted {
            (callbacks.keys)(&mut |id| insert(&mut policy, id, &callbacks.evict));
        }
        while !self.closed.load(Ordering::SeqCst) {
            runs.strike();
            // Those who asked before all this is done are told after it.
            let count_requests = mem::take(&mut *self.count_requests.lock());
            let applied = self.apply_records(&mut policy, &callbacks.evict);
            for answer in count_requests {
                // Who asked may have gone.
                let _ = answer.send(policy.entry_count());
            }
            self.rest(applied);
        }
    }

    /// Returns whether there was a note. Sees to no more than there are, however fast others come.
    fn apply_records(&self, policy: &mut Policy, evict: &impl Fn(ProductId)) -> bool {
        let mut applied = false;
        for id in iter::from_fn(|| self.reads.pop()).take(self.reads.len()) {
            applied = true;
            policy.get(&*ManuallyDrop::new(Key(id)));
        }
        for id in iter::from_fn(|| self.inserted.pop()).take(self.inserted.len()) {
            applied = true;
            insert(policy, id, evict);
        }
        applied
    }

    /// The pause before a restart.
    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while !self.closed.load(Ordering::SeqCst) {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return };
            thread::park_timeout(left);
        }
    }

    /// Answers no more count_requests.
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.count_requests.lock().clear();
    }

    /// Until there may be something to do.
    fn rest(&self, busy: bool) {
        if busy {
            return thread::park_timeout(MAINTENANCE_INTERVAL);
        }
        self.asleep.store(true, Ordering::SeqCst);
        // What was applied before that woke nobody.
        if self.inserted.is_empty() {
            thread::park();
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

/// Inserts a key, and evicts what the policy drops for it. After a restart a key may be in a note, and in the table as well:
/// mini-moka would drop the second of both, which reads as an eviction.
fn insert(policy: &mut Policy, id: ProductId, evict: &impl Fn(ProductId)) {
    if policy.contains_key(&*ManuallyDrop::new(Key(id))) {
        return;
    }
    policy.insert(Key(id), ());
    while let Some(id) = EVICTED.with_borrow_mut(Vec::pop) {
        evict(id);
    }
}
