//! Runs one test. The outcome is passed, failed, or no verdict because the machine was too busy.

use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, panic_any, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::FutureExt;
use libtest_mimic::{Completion, Failed};

use super::stall::StallMeter;

/// After a pause of the machine of this length the program's own time limits, of seconds, have passed unused: a
/// failure says nothing about the code.
const STANDSTILL: Duration = Duration::from_secs(1);
/// Timeout of a test, which only a hang reaches.
pub const LIMIT: Duration = Duration::from_secs(600);

pub type Name = Arc<str>;

/// Concurrent tests hold this for reading, a test that runs alone for writing.
static MACHINE: RwLock<()> = RwLock::new(());
/// Panics of running tests: the test's name, and the message.
static PANICS: Mutex<Vec<(Name, String)>> = Mutex::new(Vec::new());

thread_local! {
    /// The test that this thread belongs to.
    static TEST: RefCell<Option<Name>> = const { RefCell::new(None) };
}

/// The payload of a panic that ends a test without a verdict.
struct Busy(String);

/// Ends a test without a verdict: it runs once more, alone, and fails if that run ends here too. Not for a broken
/// guarantee.
pub fn too_busy(evidence: &str) -> ! {
    panic_any(Busy(format!("the machine is too busy to judge: {evidence}")))
}

/// Runs a test, with others or alone. A test that fails beside others runs once more, alone, because it may have lacked
/// the machine; the output keeps why. A test that runs alone is repeated only if its first run has no verdict.
pub fn judge(
    name: &Name,
    alone: bool,
    test: impl Fn() -> Completion,
) -> Result<Completion, Failed> {
    let first = if alone {
        run_alone(name, &test)
    } else {
        let _shared = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
        attempt(name, &test)
    };
    let outcome = first.or_else(|failure| match failure {
        Failure::Broken(why) if alone => Err(why),
        Failure::Busy(why) | Failure::Broken(why) => {
            eprintln!("{name}: once more, alone, because of: {why}");
            let second = run_alone(name, &test);
            second.map_err(|(Failure::Busy(again) | Failure::Broken(again))| {
                if again == why { why } else { format!("{again}\nbefore, beside others: {why}") }
            })
        }
    });
    outcome.map_err(|why| {
        format!("{why}\nalone: cargo test --locked --test it -- --exact {name}").into()
    })
}

fn run_alone(name: &Name, test: impl Fn() -> Completion) -> Result<Completion, Failure> {
    let _exclusive = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    attempt(name, test)
}

enum Failure {
    Busy(String),
    Broken(String),
}

fn attempt(name: &Name, test: impl Fn() -> Completion) -> Result<Completion, Failure> {
    TEST.set(Some(Arc::clone(name)));
    let stalls = StallMeter::start();
    let outcome = catch_unwind(AssertUnwindSafe(test));
    let stall = stalls.longest();
    TEST.set(None);
    let mut messages = Vec::new();
    PANICS.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, what)| {
        if of == name {
            messages.push(what.clone());
        }
        of != name
    });
    outcome.map_err(|payload| match payload.downcast::<Busy>() {
        Ok(busy) => Failure::Busy(busy.0),
        Err(_) if stall > STANDSTILL => {
            Failure::Busy(format!("the machine stood still for {stall:?}: {}", messages.join("\n")))
        }
        Err(_) => Failure::Broken(messages.join("\n")),
    })
}

/// Installs a hook that records each test's panics: message and location, and with `RUST_BACKTRACE=full` the stack.
pub fn record_panics() {
    let with_stack = std::env::var("RUST_BACKTRACE").is_ok_and(|wanted| wanted == "full");
    std::panic::set_hook(Box::new(move |panic| record(panic, with_stack)));
}

fn record(panic: &PanicHookInfo<'_>, with_stack: bool) {
    if panic.payload().is::<Busy>() {
        return;
    }
    let message = panic.payload_as_str().unwrap_or("a panic without a message");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let mut what = format!("{message}\n  at {place}");
    if with_stack {
        what += &format!("\n{}", Backtrace::force_capture());
    }
    match TEST.with_borrow(Clone::clone) {
        Some(test) => {
            PANICS.lock().unwrap_or_else(PoisonError::into_inner).push((test, what));
        }
        None => eprintln!("{what}"),
    }
}

/// Runs a test in its environment, on a runtime of its own.
pub fn run<W, F>(
    name: &Name,
    limit: Duration,
    world: impl Future<Output = W>,
    test: impl FnOnce(W) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let of_threads = Arc::clone(name);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(move || TEST.set(Some(Arc::clone(&of_threads))))
        .enable_all()
        .build()
        .unwrap();
    let outcome = runtime.block_on(async {
        let world = world.await;
        let test = AssertUnwindSafe(tokio::time::timeout(limit, test(world))).catch_unwind();
        test.await
    });
    // Instances that a failed test leaves running must not block the other tests.
    runtime.shutdown_background();
    match outcome {
        Ok(in_time) => assert!(in_time.is_ok(), "still running after {limit:?}"),
        Err(panic) => resume_unwind(panic),
    }
}
