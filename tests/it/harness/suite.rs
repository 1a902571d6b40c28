//! The list of tests.

use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Conclusion, Trial};

use super::verdict::{self, LIMIT, Name};
use super::{Private, PrivateCluster, Servers, Stack, Topology};

/// Timeout of tests that take minutes.
const LONG_LIMIT: Duration = Duration::from_secs(40 * 60);
/// Concurrent tests per core: they mostly wait.
const TESTS_PER_CORE: usize = 4;

pub struct Suite<'a> {
    servers: &'a Servers,
    trials: Vec<Trial>,
    alone: bool,
}

impl<'a> Suite<'a> {
    pub fn new(servers: &'a Servers) -> Self {
        Self { servers, trials: Vec::new(), alone: false }
    }

    /// Tests that generate load or assert on time: they run after all others, one at a time. `--list` shows the group.
    pub fn alone(&mut self, register: impl FnOnce(&mut Self)) {
        self.alone = true;
        register(self);
        self.alone = false;
    }

    /// A test that runs once against one Redis, and once against a Redis Cluster.
    pub fn both<F>(&mut self, name: &str, test: fn(Stack) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        for topology in [Topology::Single, Topology::Cluster] {
            self.on_servers(&format!("{name}::{}", topology.name()), topology, LIMIT, test);
        }
    }

    /// A test that does not depend on the topology of Redis.
    pub fn single<F>(&mut self, name: &str, test: fn(Stack) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.on_servers(name, Topology::Single, LIMIT, test);
    }

    /// A test that needs a Redis Cluster.
    pub fn cluster<F>(&mut self, name: &str, test: fn(Stack) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.on_servers(name, Topology::Cluster, LIMIT, test);
    }

    /// A test that breaks servers, with servers of its own.
    pub fn private<F>(&mut self, name: &str, test: fn(Private) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.add(name, move |name| {
            verdict::run(name, LIMIT, Private::new(), test);
            Completion::Completed
        });
    }

    /// A test that breaks nodes of a Redis Cluster, with a cluster of its own.
    pub fn private_cluster<F>(&mut self, name: &str, test: fn(PrivateCluster) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.add(name, move |name| {
            verdict::run(name, LIMIT, PrivateCluster::new(), test);
            Completion::Completed
        });
    }

    /// A test without servers.
    pub fn plain(&mut self, name: &str, test: fn()) {
        self.add(name, move |_| {
            test();
            Completion::Completed
        });
    }

    /// A test that takes minutes: runs only with `--ignored`.
    pub fn long(&mut self, name: &str, test: fn()) {
        self.plain(name, test);
        self.ignore_last();
    }

    /// A test that needs a tool. When `probe` does not find it the test is reported as ignored, with the reason.
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
        self.add(name, move |name| match probe() {
            Err(why) => Completion::ignored_with(why),
            Ok(tool) => {
                let world = Stack::new(&servers, Topology::Single);
                verdict::run(name, LIMIT, world, move |stack| test(stack, tool));
                Completion::Completed
            }
        });
    }

    /// A test that makes its own environment. `missing` names what this machine lacks: the test is reported as ignored.
    pub fn own<F>(
        &mut self,
        name: &str,
        missing: Option<&'static str>,
        test: impl Fn() -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + 'static,
    {
        self.add(name, move |name| match missing {
            Some(why) => Completion::ignored_with(why),
            None => {
                verdict::run(name, LIMIT, async {}, |()| test());
                Completion::Completed
            }
        });
    }

    /// A test on servers that takes minutes: runs only with `--ignored`.
    pub fn long_single<F>(&mut self, name: &str, test: fn(Stack) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.on_servers(name, Topology::Single, LONG_LIMIT, test);
        self.ignore_last();
    }

    fn on_servers<F>(
        &mut self,
        name: &str,
        topology: Topology,
        limit: Duration,
        test: fn(Stack) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let servers = self.servers.clone();
        self.add(name, move |name| {
            verdict::run(name, limit, Stack::new(&servers, topology), test);
            Completion::Completed
        });
    }

    fn add(&mut self, name: &str, test: impl Fn(&Name) -> Completion + Send + 'static) {
        let (named, alone) = (Name::from(name), self.alone);
        let trial =
            Trial::ignorable_test(name, move || verdict::judge(&named, alone, || test(&named)));
        self.trials.push(if alone { trial.with_kind("alone") } else { trial });
    }

    fn ignore_last(&mut self) {
        let last = self.trials.pop();
        self.trials.extend(last.map(|trial| trial.with_ignored_flag(true)));
    }

    pub fn run(mut self, mut arguments: Arguments) -> Conclusion {
        verdict::record_panics();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        arguments.test_threads.get_or_insert(cores * TESTS_PER_CORE);
        self.trials.sort_by_key(|trial| trial.kind() == "alone");
        libtest_mimic::run(&arguments, self.trials)
    }
}
