//! The list of tests, and how one is run.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use libtest_mimic::{Arguments, Completion, Conclusion, Trial};

use super::{Private, PrivateCluster, Servers, Stack, Topology};

/// Longer than any test takes that does not hang.
const LIMIT: Duration = Duration::from_secs(120);
/// The same of those that take minutes.
const LONG_LIMIT: Duration = Duration::from_secs(20 * 60);
/// Tests mostly wait, so more of them than there are cores.
const THREADS: usize = 4;

/// The tests.
pub struct Suite<'a> {
    servers: &'a Servers,
    trials: Vec<Trial>,
}

impl<'a> Suite<'a> {
    pub fn new(servers: &'a Servers) -> Self {
        Self { servers, trials: Vec::new() }
    }

    /// A test that runs against one Redis, and again against a Redis Cluster.
    pub fn both<F>(&mut self, name: &str, test: fn(Stack) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        for topology in [Topology::Single, Topology::Cluster] {
            self.add(&format!("{name}::{}", topology.name()), topology, test);
        }
    }

    /// A test to which Redis does not matter.
    pub fn single<F>(&mut self, name: &str, test: fn(Stack) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.add(name, Topology::Single, test);
    }

    /// A test that only a Redis Cluster can run.
    pub fn cluster<F>(&mut self, name: &str, test: fn(Stack) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.add(name, Topology::Cluster, test);
    }

    /// A test that breaks servers, and so has its own.
    pub fn private<F>(&mut self, name: &str, test: fn(Private) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.trials.push(Trial::test(name, move || {
            run(Private::new(), test, LIMIT);
            Ok(())
        }));
    }

    /// A test that breaks nodes of a Redis Cluster, and so has its own.
    pub fn private_cluster<F>(&mut self, name: &str, test: fn(PrivateCluster) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.trials.push(Trial::test(name, move || {
            run(PrivateCluster::new(), test, LIMIT);
            Ok(())
        }));
    }

    /// A test without servers.
    pub fn plain(&mut self, name: &str, test: fn()) {
        self.trials.push(Trial::test(name, move || {
            test();
            Ok(())
        }));
    }

    /// A test that takes minutes: only with `--ignored`.
    pub fn long(&mut self, name: &str, test: fn()) {
        let trial = Trial::test(name, move || {
            test();
            Ok(())
        });
        self.trials.push(trial.with_ignored_flag(true));
    }

    /// A test that needs more than servers. Where `probe` cannot have it the test is reported as ignored, with the
    /// reason.
    pub fn single_if<T, F>(
        &mut self,
        name: &str,
        probe: fn() -> Result<T, String>,
        test: fn(Stack, T) -> F,
    ) where
        T: Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let servers = self.servers.clone();
        self.trials.push(Trial::ignorable_test(name, move || match probe() {
            Err(why) => Ok(Completion::ignored_with(why)),
            Ok(tool) => {
                let world = Stack::new(&servers, Topology::Single);
                run(world, move |stack| test(stack, tool), LIMIT);
                Ok(Completion::Completed)
            }
        }));
    }

    /// A test that makes its own world. Where `missing` says what this machine lacks it is reported as ignored.
    pub fn own<F>(
        &mut self,
        name: &str,
        missing: Option<&'static str>,
        test: impl FnOnce() -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + 'static,
    {
        self.trials.push(Trial::ignorable_test(name, move || match missing {
            Some(why) => Ok(Completion::ignored_with(why)),
            None => {
                run(async {}, |()| test(), LIMIT);
                Ok(Completion::Completed)
            }
        }));
    }

    /// A test on servers that takes minutes: only with `--ignored`.
    pub fn long_single<F>(&mut self, name: &str, test: fn(Stack) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let servers = self.servers.clone();
        let trial = Trial::test(name, move || {
            run(Stack::new(&servers, Topology::Single), test, LONG_LIMIT);
            Ok(())
        });
        self.trials.push(trial.with_ignored_flag(true));
    }

    fn add<F>(&mut self, name: &str, topology: Topology, test: fn(Stack) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let servers = self.servers.clone();
        self.trials.push(Trial::test(name, move || {
            run(Stack::new(&servers, topology), test, LIMIT);
            Ok(())
        }));
    }

    pub fn run(self, mut arguments: Arguments) -> Conclusion {
        arguments.test_threads.get_or_insert(THREADS);
        libtest_mimic::run(&arguments, self.trials)
    }
}

fn run<W, F>(world: impl Future<Output = W>, test: impl FnOnce(W) -> F, limit: Duration)
where
    F: Future<Output = ()> + 'static,
{
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let outcome = runtime.block_on(async {
        let world = world.await;
        let test = AssertUnwindSafe(tokio::time::timeout(limit, test(world))).catch_unwind();
        test.await
    });
    // Instances that a failed test leaves behind must not hold up the others.
    runtime.shutdown_background();
    match outcome {
        Ok(in_time) => assert!(in_time.is_ok(), "still running after {limit:?}"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
