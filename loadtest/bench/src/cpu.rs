//! CPU time of processes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// CPU time in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cpu {
    pub(crate) user: f64,
    pub(crate) system: f64,
    total: f64,
}

impl Cpu {
    /// The sum of these processes, since their start.
    pub(crate) fn of(pids: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for pid in pids {
            let process = Path::new("/proc").join(pid.to_string());
            let used = Self::of_process(&process)
                .with_context(|| format!("{} cannot be read", process.display()))?;
            sum.user += used.user;
            sum.system += used.system;
            sum.total += used.total;
        }
        Ok(sum)
    }

    fn of_process(process: &Path) -> Result<Self> {
        let mut nanos = 0.0;
        for thread in fs::read_dir(process.join("task"))? {
            // The time of a thread that has ended is lost. Tokio's workers do not end.
            let times = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            nanos += nanos_of(&times).unwrap_or_default();
        }
        let stat = fs::read_to_string(process.join("stat"))?;
        let (user, system) = ticks_of(&stat).context("not the times of a process")?;
        Ok(Self { user, system, total: nanos / 1e3 })
    }

    /// The total is exact. User and system time are counted in ticks of 10 ms, so only their ratio is used.
    pub(crate) fn since(self, before: Self) -> Self {
        let (user, system) = (self.user - before.user, self.system - before.system);
        let total = self.total - before.total;
        let share = if user + system > 0.0 { user / (user + system) } else { 0.5 };
        Self { user: total * share, system: total * (1.0 - share), total }
    }
}

/// Time on a CPU in nanoseconds, the first field of `/proc/PID/task/TID/schedstat`.
fn nanos_of(schedstat: &str) -> Option<f64> {
    schedstat.split(' ').next()?.parse().ok()
}

/// User and system time in ticks, of `/proc/PID/stat`.
fn ticks_of(stat: &str) -> Option<(f64, f64)> {
    // The name of the program is in parentheses, and may contain spaces and parentheses.
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ').skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_are_found_behind_any_name() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194304 99 0 0 0 17 5 0 0 20 0 1 0 1172223 3133440";
        assert_eq!(ticks_of(stat), Some((17.0, 5.0)));
    }

    #[test]
    fn the_exact_time_is_divided_in_the_ratio_of_the_ticks() {
        let before = Cpu { user: 10.0, system: 10.0, total: 1_000.0 };
        let used = Cpu { user: 13.0, system: 11.0, total: 1_200.0 }.since(before);
        assert_eq!((used.user, used.system), (150.0, 50.0));
    }

    #[test]
    fn the_time_of_this_process_grows_while_it_works() {
        let pids = [std::process::id()];
        let before = Cpu::of(&pids).unwrap();
        let began = std::time::Instant::now();
        while Cpu::of(&pids).unwrap().since(before).total < 1_000.0 {
            assert!(began.elapsed().as_secs() < 20, "no time was counted");
        }
    }
}
