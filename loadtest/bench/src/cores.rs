//! Which cores a process may use: so that a load generator does not take from the server what it measures.

use std::path::Path;
use std::process::Command as Blocking;

use tokio::process::Command;

/// From util-linux, which every Linux has.
const TASKSET: &str = "taskset";

/// Some cores, in taskset's words; none: whatever there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cores(Option<String>);

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
        Self { servers: Cores::some(servers), load: Cores::some(load) }
    }

    /// What a reader has to know of it.
    pub(crate) fn note(&self) -> String {
        match (&self.servers.0, &self.load.0) {
            (Some(servers), Some(load)) => {
                format!("Servers on core {servers} (Redis on any), the load on core {load}.")
            }
            _ => "Servers and load share all cores.".to_owned(),
        }
    }
}

impl Cores {
    fn some(cores: &[usize]) -> Self {
        let cores: Vec<String> = cores.iter().map(ToString::to_string).collect();
        Self(Some(cores.join(",")))
    }

    /// A command that runs `program` there.
    pub(crate) fn command(&self, program: &Path) -> Command {
        match &self.0 {
            None => Command::new(program),
            Some(cores) => {
                let mut command = Command::new(TASKSET);
                command.args(["-c", cores]).arg(program);
                command
            }
        }
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
