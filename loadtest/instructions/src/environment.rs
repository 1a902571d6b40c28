//! Besides the code, instruction counts depend on the compiler, on the C library, which selects its `memcpy` by the CPU, and
//! on the CPU that valgrind emulates.

use std::process::Command;

use serde::{Deserialize, Serialize};

/// Features of the host by which valgrind 3.19 and later choose the emulated CPU, and so the C library its functions.
const FEATURES: [&str; 6] = ["sse4_2", "avx", "avx2", "bmi2", "f16c", "rdrand"];

/// Counts taken in equal environments can be compared one by one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Environment {
    rustc: String,
    libc: String,
    cpu: String,
    valgrind: String,
}

impl Environment {
    /// `None` if valgrind is not installed.
    pub(crate) fn here() -> Option<Self> {
        let valgrind = first_line(Command::new("valgrind").arg("--version"))?;
        let libc = first_line(Command::new("getconf").arg("GNU_LIBC_VERSION"));
        Some(Self {
            rustc: env!("RUSTC_VERSION").to_owned(),
            libc: libc.unwrap_or_else(|| "unknown".to_owned()),
            cpu: cpu(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            valgrind,
        })
    }

    #[cfg(test)]
    pub(crate) fn of(rustc: &str) -> Self {
        let [libc, cpu, valgrind] = ["libc", "cpu", "valgrind"].map(str::to_owned);
        Self { rustc: rustc.to_owned(), libc, cpu, valgrind }
    }

    /// One line for each difference.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let pairs = [
            (&self.rustc, &other.rustc),
            (&self.libc, &other.libc),
            (&self.cpu, &other.cpu),
            (&self.valgrind, &other.valgrind),
        ];
        let differing = pairs.into_iter().filter(|(own, other)| own != other);
        differing.map(|(own, other)| format!("{own}, here {other}")).collect()
    }
}

fn cpu(cpuinfo: &str) -> String {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':'));
    let flags: Vec<&str> = flags.map_or(Vec::new(), |(_, flags)| flags.split(' ').collect());
    let known = FEATURES.into_iter().filter(|feature| flags.contains(feature));
    [std::env::consts::ARCH].into_iter().chain(known).collect::<Vec<_>>().join(" ")
}

fn first_line(command: &mut Command) -> Option<String> {
    let printed = command.output().ok().filter(|output| output.status.success())?.stdout;
    String::from_utf8_lossy(&printed).lines().next().map(str::to_owned)
}
