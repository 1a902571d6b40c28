//! The cores that a process may use. On cores of its own, a load generator does not take CPU time from the server.

use std::path::Path;
use std::process::Command as Blocking;

#[cfg(target_os = "linux")]
use nix::sched::{CpuSet, sched_setaffinity};
#[cfg(target_os = "linux")]
use nix::unistd::Pid;
use tokio::process::Command;

/// From util-linux, which every Linux distribution has.
const TASKSET: &str = "taskset";

/// An empty list means all cores.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cores(Vec<usize>);

/// Disjoint cores for the servers and for the load.
#[derive(Clone, Debug, Default)]
pub(crate) struct Halves {
    pub(crate) servers: Cores,
    pub(crate) load: Cores,
}

impl Halves {
    /// Half of the cores for each; all cores for both if there is only one, or no taskset.
    pub(crate) fn split() -> Self {
        let Some(cores) = allowed().filter(|cores| cores.len() > 1) else { return Self::default() };
        let (servers, load) = cores.split_at(cores.len() / 2);
        Self { servers: Cores(servers.to_vec()), load: Cores(load.to_vec()) }
    }

    /// One sentence for the tables.
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
    /// As an argument of taskset.
    fn list(&self) -> Option<String> {
        let cores: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        (!cores.is_empty()).then(|| cores.join(","))
    }

    /// A command that runs `program` on these cores.
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

    /// Pins the calling thread to these cores.
    #[cfg(target_os = "linux")]
    pub(crate) fn pin_thread(&self) -> nix::Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut set = CpuSet::new();
        self.0.iter().try_for_each(|core| set.set(*core))?;
        sched_setaffinity(Pid::from_raw(0), &set)
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn pin_thread(&self) -> nix::Result<()> {
        Ok(())
    }
}

/// The cores that this process may use, if taskset is installed.
fn allowed() -> Option<Vec<usize>> {
    let own = std::process::id().to_string();
    let output = Blocking::new(TASKSET).args(["-cp", &own]).output().ok()?;
    parse_list(&String::from_utf8_lossy(&output.stdout))
}

/// `pid 42's current affinity list: 0-2,5`.
fn parse_list(line: &str) -> Option<Vec<usize>> {
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
    fn the_output_of_taskset_is_parsed() {
        let line = "pid 42's current affinity list: 0-2,5\n";
        assert_eq!(parse_list(line), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_list("taskset: failed"), None);
    }
}
