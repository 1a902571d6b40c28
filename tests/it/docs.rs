//! The README says what is so: its tables are compared with what the program and the contract say.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Arg, CommandFactory};
use hotshelf::config::Cli;

use crate::harness::{Stack, Suite};

const README: &str = include_str!("../../README.md");
const CONTRACT: &str = include_str!("../../proto/hotshelf/v1/product_service.proto");

pub fn register(suite: &mut Suite<'_>) {
    suite.plain("docs::the_readme_has_every_option_with_its_default", options);
    suite.single("docs::the_readme_has_every_metric_with_its_labels", metrics);
    suite.plain("docs::the_readme_has_every_reason_of_the_contract", reasons);
}

/// The first cells of the rows under a table's head.
fn table<const CELLS: usize>(text: &str, head: &str) -> BTreeSet<[String; CELLS]> {
    let mut lines = text.lines().map(|line| line.trim_start_matches("// "));
    assert!(lines.any(|line| line.starts_with(head)), "there is a table {head}");
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let mut cells = row.split('|').skip(1).map(|cell| cell.trim().replace('`', ""));
        std::array::from_fn(|_| cells.next().unwrap())
    })
    .collect()
}

fn options() {
    let option = |argument: &Arg| {
        let flag = format!("--{}", argument.get_long()?);
        let environment = argument.get_env()?.to_str()?.to_owned();
        let default = argument.get_default_values().first()?.to_str()?.to_owned();
        Some([flag, environment, default])
    };
    let command = Cli::command();
    let options: BTreeSet<_> = command.get_arguments().filter_map(option).collect();
    let others = ["help", "version"];
    let known =
        command.get_arguments().filter(|argument| !others.contains(&argument.get_id().as_str()));
    // Options for tests only.
    let known = known.filter(|argument| !argument.is_hide_set());
    assert_eq!(options.len(), known.count(), "every option has a variable and a default");
    assert_eq!(table(README, "| flag | environment | default |"), options);
}

async fn metrics(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    node.product(id).await;
    let (_, text) = node.admin("/metrics").await;
    // An instance with TLS has metrics of its own.
    let secure = crate::tls::serving(&stack).await;
    let (_, of_secure) = crate::harness::admin(secure.admin_addr.port(), "/metrics").await;
    let mut labels = labels_of(&of_secure);
    for (name, more) in labels_of(&text) {
        labels.entry(name).or_default().extend(more);
    }
    let shown: BTreeSet<[String; 2]> = labels
        .into_iter()
        .map(|(name, labels)| [name.to_owned(), Vec::from_iter(labels).join(", ")])
        .collect();
    assert_eq!(table(README, "| metric | labels |"), shown);
}

/// The names of the labels of every metric in an exposition.
fn labels_of(exposition: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let names = exposition.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut metrics: BTreeMap<&str, BTreeSet<&str>> =
        names.map(|line| (line.split(' ').next().unwrap(), BTreeSet::new())).collect();
    for series in exposition.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, rest)) = series.split_once('{') else { continue };
        let suffixes = ["_bucket", "_sum", "_count"];
        let family = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
        let labels = metrics.get_mut(family.unwrap_or(name)).unwrap();
        let (pairs, _) = rest.rsplit_once('}').unwrap();
        // The label of a bucket's bound is set by Prometheus' format.
        let keys = pairs.split("\",").filter_map(|pair| Some(pair.split_once('=')?.0));
        labels.extend(keys.filter(|key| *key != "le"));
    }
    metrics
}

fn reasons() {
    let promised: BTreeSet<[String; 2]> = table(CONTRACT, "| code ");
    assert!(promised.len() > 10, "{promised:?}");
    assert_eq!(table(README, "| code | reason |"), promised);
}
