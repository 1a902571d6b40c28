//! Who stays in memory: mini-moka decides (TinyLFU: Einziger, Friedman, Manes, ACM TOS 2017), on a thread of its own.
//!
//! Its cache for one thread takes less than two thirds of the memory of its concurrent one, and has none of that one's
//! faults. Whoever reads or loads only leaves a note; what follows from it happens within [`NAP`].

use std::cell::RefCell;
use std::iter;
use std::mem::{self, ManuallyDrop};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ahash::RandomState;
use crossbeam_queue::{ArrayQueue, SegQueue};
use mini_moka::unsync::Cache;
use parking_lot::Mutex;

use crate::product::ProductId;

/// Notes of reads that may wait; more are lost, which makes the sample smaller.
const USES: usize = 1_024;
/// So many notes are worth waking the thread for.
const MANY: usize = 256;
/// For how long notes are collected, unless there are many. What came meanwhile is read from memory at least for
/// that long, admitted or not.
const NAP: Duration = Duration::from_millis(20);

/// Those who have a slot. Dropping this ends the thread.
#[derive(Debug)]
pub(super) struct Tenants {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

/// Where notes are left for the thread.
#[derive(Debug)]
struct Desk {
    uses: ArrayQueue<ProductId>,
    newcomers: SegQueue<ProductId>,
    questions: Mutex<Vec<mpsc::Sender<u64>>>,
    /// Whether the thread sleeps until it is woken; else it looks here soon.
    asleep: AtomicBool,
    closed: AtomicBool,
}

/// The key of a slot. mini-moka has no listener for evictions; dropping this is one.
#[derive(PartialEq, Eq, Hash)]
struct Tenant(ProductId);

thread_local! {
    /// Whom mini-moka has dropped, on its thread.
    static GONE: RefCell<Vec<ProductId>> = const { RefCell::new(Vec::new()) };
}

impl Drop for Tenant {
    fn drop(&mut self) {
        GONE.with_borrow_mut(|gone| gone.push(self.0));
    }
}

impl Tenants {
    /// Nobody yet; `leave` is called for each who has to go.
    pub(super) fn new(capacity: u64, leave: impl Fn(ProductId) + Send + 'static) -> Self {
        let desk = Arc::new(Desk {
            uses: ArrayQueue::new(USES),
            newcomers: SegQueue::new(),
            questions: Mutex::default(),
            asleep: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        let at_desk = Arc::clone(&desk);
        let thread = thread::Builder::new()
            .name("hot-tenants".to_owned())
            .spawn(move || at_desk.serve(capacity, leave))
            .expect("a process that can serve can start a thread");
        Self { desk, thread: Some(thread) }
    }

    /// Takes note that `id` was read.
    pub(super) fn note_use(&self, id: ProductId) {
        // With no room left it is as if it had not been in the sample.
        let _ = self.desk.uses.push(id);
        // Awake, the thread comes by itself, and is not to be kept busy with a sample.
        if self.desk.uses.len() >= MANY && self.desk.asleep.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    /// Takes note that `id` has a slot now.
    pub(super) fn note_newcomer(&self, id: ProductId) {
        self.desk.newcomers.push(id);
        let many = self.desk.newcomers.len() >= MANY;
        if many || self.desk.asleep.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// How many there are once everything that was noted before has been seen to.
    pub(super) fn count(&self) -> u64 {
        let (answer, count) = mpsc::channel();
        self.desk.questions.lock().push(answer);
        self.wake();
        count.recv().unwrap_or_default()
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Tenants {
    fn drop(&mut self) {
        self.desk.closed.store(true, Ordering::SeqCst);
        self.wake();
        // If it panicked, that has been reported.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Desk {
    fn serve(&self, capacity: u64, leave: impl Fn(ProductId)) {
        let mut tenants =
            Cache::builder().max_capacity(capacity).build_with_hasher(RandomState::new());
        while !self.closed.load(Ordering::SeqCst) {
            // Those who asked before all this is done are told after it.
            let questions = mem::take(&mut *self.questions.lock());
            let noted = self.see_to_notes(&mut tenants, &leave);
            for answer in questions {
                // Who asked may have gone.
                let _ = answer.send(tenants.entry_count());
            }
            self.rest(noted);
        }
    }

    /// Returns whether there was a note. Sees to no more than there are, however fast others come.
    fn see_to_notes(
        &self,
        tenants: &mut Cache<Tenant, (), RandomState>,
        leave: impl Fn(ProductId),
    ) -> bool {
        let mut noted = false;
        for id in iter::from_fn(|| self.uses.pop()).take(self.uses.len()) {
            noted = true;
            tenants.get(&*ManuallyDrop::new(Tenant(id)));
        }
        for id in iter::from_fn(|| self.newcomers.pop()).take(self.newcomers.len()) {
            noted = true;
            tenants.insert(Tenant(id), ());
            while let Some(id) = GONE.with_borrow_mut(Vec::pop) {
                leave(id);
            }
        }
        noted
    }

    /// Until there may be something to do.
    fn rest(&self, busy: bool) {
        if busy {
            return thread::park_timeout(NAP);
        }
        self.asleep.store(true, Ordering::SeqCst);
        // What was noted before that woke nobody.
        if self.newcomers.is_empty() {
            thread::park();
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}
