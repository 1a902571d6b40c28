//! Keeps background tasks running: a task that ends, by error or panic, is restarted with backoff, counted, and listed on
//! `/readyz` while it is down. An instance that cannot keep a task running stops, so that it is replaced.

mod faults;

use std::any::Any;
use std::convert::Infallible;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::metrics::{BackgroundTask, Metrics};
pub use faults::{Fault, Faults};

/// Pause before the first restart; it doubles with each further one, jittered. Too low: a task that fails at once keeps a
/// core busy. Too high: the task's work stands still for longer.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// After a run of this length the count of restarts starts again at zero.
const STEADY: Duration = Duration::from_secs(60);
/// Restarts in a row, without a run of [`STEADY`], after which the instance stops: about three seconds. Too high: an instance
/// serves without its task for longer. Too low: a passing fault stops an instance.
const MAX_RESTARTS: u32 = 5;

/// The background tasks of one instance; clones share them.
#[derive(Clone, Debug)]
pub struct Supervisor(Arc<TaskState>);

#[derive(Debug)]
struct TaskState {
    /// Why each task is down, if it is; indexed by [`BackgroundTask`].
    down: Mutex<[Option<String>; BackgroundTask::COUNT]>,
    /// Why the instance has to stop. Set before `failed` is cancelled, so that [`Supervisor::failed`] finds it.
    failure: Mutex<Option<String>>,
    failed: CancellationToken,
    metrics: Arc<Metrics>,
    faults: Faults,
}

/// The successive runs of one task.
#[derive(Debug)]
pub(crate) struct Runs {
    task: BackgroundTask,
    supervisor: Supervisor,
    began: Instant,
    restarts: u32,
}

impl Supervisor {
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(TaskState {
            down: Mutex::default(),
            failure: Mutex::default(),
            failed: CancellationToken::new(),
            metrics,
            faults: Faults::default(),
        }))
    }

    /// One sentence for each task that is down, for the operator.
    #[must_use]
    pub fn down(&self) -> Vec<String> {
        self.0.down.lock().iter().flatten().cloned().collect()
    }

    /// Resolves when a task cannot be kept running. Returns one sentence for the operator: which task, and why.
    pub async fn failed(&self) -> String {
        self.0.failed.cancelled().await;
        self.0.failure.lock().clone().unwrap_or_default()
    }

    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.0.faults
    }

    /// Starts the first run of `task`.
    pub(crate) fn begin(&self, task: BackgroundTask) -> Runs {
        Runs { task, supervisor: self.clone(), began: Instant::now(), restarts: 0 }
    }

    /// Runs the future that `work` makes, and the next one when it ends. Returns after [`MAX_RESTARTS`] restarts in a row.
    pub(crate) async fn keep_running<F, E>(&self, task: BackgroundTask, work: impl Fn() -> F)
    where
        F: Future<Output = Result<Infallible, E>>,
        E: Display,
    {
        let mut runs = self.begin(task);
        loop {
            let run = async {
                tokio::select! {
                    // An injected fault first, so that a run that is to fail does nothing before.
                    biased;
                    reason = self.0.faults.strike(task) => reason,
                    ended = async { work().await } => match ended {
                        Ok(never) => match never {},
                        Err(error) => error.to_string(),
                    },
                }
            };
            let ended = AssertUnwindSafe(run).catch_unwind().await;
            let reason = ended.unwrap_or_else(|panic| panic_message(&*panic));
            let Some(pause) = runs.ended(&reason) else { return };
            tokio::time::sleep(pause).await;
            runs.restarted();
        }
    }

    fn fail(&self, sentence: String) {
        self.0.failure.lock().get_or_insert(sentence);
        self.0.failed.cancel();
    }
}

impl Runs {
    /// Records that the run has ended. Returns the pause before the next run, or `None` after the last restart: then the
    /// instance stops.
    pub(crate) fn ended(&mut self, reason: &str) -> Option<Duration> {
        let task = self.task.name();
        // A panic message may have several lines; the log and `/readyz` need one.
        let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
        if self.began.elapsed() >= STEADY {
            self.restarts = 0;
        }
        if self.restarts == MAX_RESTARTS {
            let sentence = format!("background task `{task}` is down: {reason}");
            self.set_down(Some(format!("{sentence}; given up after {MAX_RESTARTS} restarts")));
            tracing::error!(task, %reason, "a background task ended; given up, this instance stops");
            self.supervisor.fail(format!(
                "{sentence}; stopped after {MAX_RESTARTS} restarts, so that another instance takes over"
            ));
            return None;
        }
        let pause = FIRST_PAUSE * 2_u32.pow(self.restarts);
        let pause = pause.mul_f64(rand::random_range(0.5..1.0));
        self.restarts += 1;
        self.set_down(Some(format!("background task `{task}` is down: {reason}; restarting")));
        tracing::error!(task, %reason, ?pause, "a background task ended; restarting it");
        Some(pause)
    }

    /// Records that the next run starts.
    pub(crate) fn restarted(&mut self) {
        self.began = Instant::now();
        self.supervisor.0.metrics.task_restarts.inc(self.task);
        self.set_down(None);
    }

    /// Panics when a test has injected a fault for this task.
    pub(crate) fn strike(&self) {
        self.supervisor.0.faults.strike_now(self.task);
    }

    fn set_down(&self, sentence: Option<String>) {
        self.supervisor.0.down.lock()[self.task as usize] = sentence;
    }
}

/// The message of a panic.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", text.unwrap_or("without a message"))
}
