//! docs/performance.md and its plot.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::claims::Verdict;
use crate::plot;
use crate::report::Section;

/// Sections of the plot.
const PLOTTED: [&str; 4] = ["reads -c8 -m32", "reads -c16 -m1", "batch 100", "redis -c8 -m32"];

const INTRODUCTION: &str = "\
What a read costs, compared with other servers. One run of one command wrote everything on this page. It loaded all \
servers in turn, round after round, so that other work of the machine affected all of them: figures compare within a \
table, and ratios also between machines; microseconds do not.

- **hotshelf**: the program as it is deployed, with everything on: metrics, hot keys, refresh, relay, deadlines, limits.
- **ordinary**: the usual server: tonic's generated service on tonic's own server, products in mini-moka, \
cloned and encoded for each call (`loadtest/baselines`).
- **bare**: hyper's HTTP/2 server with the connection I/O of hotshelf's edge and one constant reply of the same size: nearly \
the least that a gRPC server on hyper can cost.
- **nginx**: a constant reply of the same size over h2c; **redis-server**: GET of as many bytes, in Redis' own protocol, \
pipelined as deep as the others have streams.

Where one product is read, servers and load have separate cores unless the table states otherwise: on the same cores the \
load generator would take CPU time from the server.

Each cell is the median of the rounds, then the least and the most. A ratio is the median of the ratios of the rounds.";

pub(crate) struct Document<'a> {
    pub(crate) sections: &'a [Section],
    pub(crate) counts: &'a str,
    pub(crate) verdicts: &'a [Verdict],
    /// The arguments of `make bench`.
    pub(crate) arguments: &'a str,
}

impl Document<'_> {
    /// The table of the claims.
    pub(crate) fn claims(&self) -> String {
        let lines: Vec<String> = self.verdicts.iter().map(ToString::to_string).collect();
        format!(
            "| what | wanted | measured | met | bare server |\n|---|---|--:|---|--:|\n{}\n",
            lines.join("\n")
        )
    }

    fn markdown(&self, plot: &str) -> Result<String> {
        let tables: Vec<String> = self.sections.iter().map(ToString::to_string).collect();
        Ok(format!(
            "# Performance\n\n{INTRODUCTION}\n\n## What is wanted, and what was measured\n\n{}\nThe last column is what the \
             bare server reaches: as far as anything on hyper gets here.\n\n\
             ![CPU time for each request]({plot})\n\n\
             ## How to reproduce it\n\n```console\n$ make bench{}\n```\n\n\
             It needs h2load, which it installs, and takes nginx, redis-benchmark and perf (or strace) along where they are \
             installed; servers and load are on one machine, so nothing else should run on it. {}\n\n## Figures\n\n{}\n{}",
            self.claims(),
            self.arguments,
            machine()?,
            tables.join("\n"),
            self.counts,
        ))
    }

    /// Writes the page, and the plot beside it.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let plotted: Vec<&Section> = PLOTTED
            .iter()
            .filter_map(|key| self.sections.iter().find(|section| section.key == *key))
            .collect();
        let plot = path.with_extension("svg");
        let name =
            plot.file_name().and_then(|name| name.to_str()).context("a file without a name")?;
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&plot, plot::svg(&plotted)).with_context(|| plot.display().to_string())?;
        fs::write(path, self.markdown(name)?).with_context(|| path.display().to_string())
    }
}

/// CPU, cores and kernel of this machine.
fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown", |(_, model)| model);
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let kernel = kernel.split('-').next().unwrap_or_default().trim();
    Ok(format!("This run: {cores} cores of {model}, Linux {kernel}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_and_the_plot_are_written_side_by_side() {
        let dir = tempfile::tempdir().unwrap();
        let page = dir.path().join("docs/performance.md");
        let document =
            Document { sections: &[], counts: "", verdicts: &[], arguments: " BENCH_ARGS=--full" };
        document.write(&page).unwrap();
        let text = fs::read_to_string(&page).unwrap();
        assert!(text.contains("](performance.svg)"));
        assert!(text.contains("$ make bench BENCH_ARGS=--full\n"));
        assert!(page.with_extension("svg").exists());
    }
}
