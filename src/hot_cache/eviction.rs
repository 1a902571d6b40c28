//! The eviction policy: mini-moka decides which keys stay in memory (TinyLFU: Einziger, Friedman, Manes, ACM TOS 2017), on
//! a thread of its own.
//!
//! mini-moka's single-threaded cache takes less than two thirds of the memory of its concurrent cache, and has none of its
//! bugs. Reads and inserts only put a record into the mailbox, which the thread applies within [`MAINTENANCE_INTERVAL`].
//!
//! A thread that panics is restarted with an empty policy, into which all keys of the table are inserted again. Until then the
//! table takes a bounded number of further keys (`slots.rs`); reads and loads do not wait for the thread.

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

/// Records of reads in the mailbox. More are dropped, which makes the sample smaller.
const SAMPLED_READS: usize = 1_024;
/// Records for which the thread is woken before its interval ends.
const WAKE_AT: usize = 256;
/// The longest time for which records are collected. An inserted key is readable for that long, admitted or not.
const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(20);

/// The keys that have a slot. Dropping this ends the thread.
#[derive(Debug)]
pub(super) struct EvictionPolicy {
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

/// Records for the thread.
#[derive(Debug)]
struct Mailbox {
    reads: ArrayQueue<ProductId>,
    inserted: SegQueue<ProductId>,
    count_requests: Mutex<Vec<mpsc::Sender<u64>>>,
    /// Whether the thread sleeps until it is woken. Else it reads the mailbox within the interval.
    asleep: AtomicBool,
    closed: AtomicBool,
}

/// The key of a slot. mini-moka has no eviction listener: a key reports its eviction when it is dropped.
#[derive(PartialEq, Eq, Hash)]
struct Key(ProductId);

thread_local! {
    /// Keys that mini-moka has dropped on this thread.
    static EVICTED: RefCell<Vec<ProductId>> = const { RefCell::new(Vec::new()) };
}

impl Drop for Key {
    fn drop(&mut self) {
        EVICTED.with_borrow_mut(|gone| gone.push(self.0));
    }
}

/// What the policy needs of the table.
struct Callbacks<K, E> {
    capacity: u64,
    /// Calls its argument with every key of the table.
    keys: K,
    /// Removes a key from the table.
    evict: E,
}

type Policy = Cache<Key, (), RandomState>;

impl EvictionPolicy {
    /// Starts the thread. It calls `evict` with each key that it evicts, and `keys` after a restart.
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

    pub(super) fn record_read(&self, id: ProductId) {
        // A full mailbox drops the record: the read is not in the sample.
        let _ = self.mailbox.reads.push(id);
        // Awake, the thread reads the mailbox anyway; reads must not keep it busy.
        if self.mailbox.reads.len() >= WAKE_AT && self.mailbox.asleep.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    /// `id` has a slot now.
    pub(super) fn record_inserted(&self, id: ProductId) {
        self.mailbox.inserted.push(id);
        let many = self.mailbox.inserted.len() >= WAKE_AT;
        if many || self.mailbox.asleep.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// The number of keys once all records left before are applied; 0 after the thread has ended.
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
            // No answer: the thread panicked. It is asked again after its restart.
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
        // A panic has been logged by the supervisor.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Mailbox {
    /// Runs until the cache is dropped, or until the supervisor gives up restarting it, which stops the instance.
    fn run_supervised(
        &self,
        callbacks: &Callbacks<impl Fn(&mut dyn FnMut(ProductId)), impl Fn(ProductId)>,
        mut runs: Runs,
    ) {
        let mut restarted = false;
        // Each run has a policy of its own, so none is used after a panic.
        while let Err(panic) =
            catch_unwind(AssertUnwindSafe(|| self.serve(callbacks, &runs, restarted)))
        {
            // Dropping the old policy has recorded all its keys as evicted; the table still holds them.
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
            // Requests made before this point are answered after all earlier records are applied.
            let count_requests = mem::take(&mut *self.count_requests.lock());
            let applied = self.apply_records(&mut policy, &callbacks.evict);
            for answer in count_requests {
                // The requester may have been dropped.
                let _ = answer.send(policy.entry_count());
            }
            self.rest(applied);
        }
    }

    /// Returns whether there was a record. Applies no more than there are at the start, however fast others come.
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

    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while !self.closed.load(Ordering::SeqCst) {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return };
            thread::park_timeout(left);
        }
    }

    /// Refuses further count requests.
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.count_requests.lock().clear();
    }

    /// Sleeps until there may be a record.
    fn rest(&self, busy: bool) {
        if busy {
            return thread::park_timeout(MAINTENANCE_INTERVAL);
        }
        self.asleep.store(true, Ordering::SeqCst);
        // A record inserted before `asleep` was set did not wake this thread.
        if self.inserted.is_empty() {
            thread::park();
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

/// Inserts a key, and evicts what the policy drops for it. After a restart a key may be both in the table and in the mailbox:
/// mini-moka would drop the second, which would count as an eviction.
fn insert(policy: &mut Policy, id: ProductId, evict: &impl Fn(ProductId)) {
    if policy.contains_key(&*ManuallyDrop::new(Key(id))) {
        return;
    }
    policy.insert(Key(id), ());
    while let Some(id) = EVICTED.with_borrow_mut(Vec::pop) {
        evict(id);
    }
}
