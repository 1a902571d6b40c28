//! Which cores a process may use: so that a load generator does not take from the server what it measures.

use std::path::Path;
use std::process::Command as Blocking;

#[cfg(target_os = "linux")]
use nix::sched::{CpuSet, sched_setaffinity};
#[cfg(target_os = "linux")]
use nix::unistd::Pid;
use tokio::process::Command;

/// From util-linux, which every Linux has.
const TASKSET: &str = "taskset";

/// Some cores; none: whatever there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cores(Vec<usize>);

/// For the servers, and for the load.
#[derive(Clone, Debug, Default)]
pub(crate) struct Halves {
    pub(crate) servers: Cores,
    pub(crate) load: Cores,
}

impl Halves {
    /// One half for each, where there are two cores and a way to divide them.
    pub(crate) fn apart() -> Self {
        let Some(cores) = allowed().filter(|cores| cores.len() > 1) else { return Self::default() };
        let (servers, load) = cores.split_at(cores.len() / 2);
        Self { servers: Cores(servers.to_vec()), load: Cores(load.to_vec()) }
    }

    /// What a reader has to know of it.
    pub(crate) fn note(&self) -> String {
        match (self.servers.list(), self.load.list()) {
            (Some(servers), Some(load)) => {
                format!("Servers on core {servers} (Redis on any), the load on core {load}.")
            }
            _ => "Servers and load share all cores.".to_owned(),
        }
    }
}

impl Cores {
    /// In taskset's words.
    fn list(&self) -> Option<String> {
        let cores: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        (!cores.is_empty()).then(|| cores.join(","))
    }

    /// A command that runs `program` there.
    pub(crate) fn command(&self, program: &Path) -> Command {
        match self.list() {
            None => Command::new(program),
            Some(cores) => {
                let mut command = Command::new(TASKSET);
                command.args(["-c", &cores]).arg(program);
                command
            }
        }
    }

    /// Keeps the thread that calls it there.
    #[cfg(target_os = "linux")]
    pub(crate) fn hold_thread(&self) -> nix::Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut set = CpuSet::new();
        self.0.iter().try_for_each(|core| set.set(*core))?;
        sched_setaffinity(Pid::from_raw(0), &set)
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn hold_thread(&self) -> nix::Result<()> {
        Ok(())
    }
}

/// The cores that this process may use, as far as can be told.
fn allowed() -> Option<Vec<usize>> {
    let own = std::process::id().to_string();
    let told = Blocking::new(TASKSET).args(["-cp", &own]).output().ok()?;
    listed(&String::from_utf8_lossy(&told.stdout))
}

/// `pid 42's current affinity list: 0-2,5`.
fn listed(line: &str) -> Option<Vec<usize>> {
    let (_, list) = line.trim().rsplit_once(' ')?;
    let mut cores = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cores.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_read_from_what_taskset_says() {
        let line = "pid 42's current affinity list: 0-2,5\n";
        assert_eq!(listed(line), Some(vec![0, 1, 2, 5]));
        assert_eq!(listed("taskset: failed"), None);
    }
}
