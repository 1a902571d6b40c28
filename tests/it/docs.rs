//! The documentation agrees with the program: its tables are compared with the options, the metrics and the contract, its
//! links and the files that it names exist, and its commands are what their tools accept.

mod commands;
mod deployed;
mod links;
mod monitoring;
mod shell;
pub mod tools;

use std::collections::{BTreeMap, BTreeSet};

use clap::{Arg, CommandFactory};
use hotshelf::config::Cli;

use crate::harness::{Stack, Suite};

const README: &str = include_str!("../../README.md");
const API: &str = include_str!("../../docs/api.md");
const CONFIGURATION: &str = include_str!("../../docs/configuration.md");
const METRICS: &str = include_str!("../../docs/metrics.md");
const CONTRACT: &str = include_str!("../../proto/hotshelf/v1/product_service.proto");

/// What is read in five minutes; everything else belongs into docs/.
const README_WORDS: usize = 1_500;

pub fn register(suite: &mut Suite<'_>) {
    suite.plain("docs::every_option_is_listed_with_its_default", options);
    suite.single("docs::every_metric_is_listed_with_its_labels", metrics);
    suite.plain("docs::every_reason_of_the_contract_is_listed", reasons);
    suite.plain("docs::every_command_is_accepted_by_its_tool", commands::work);
    suite.plain("docs::field_masks_are_decoded_as_each_tool_does", tools::field_masks);
    suite.plain("docs::every_link_leads_somewhere", links::lead_somewhere);
    suite.plain("docs::every_file_that_is_named_exists", links::files_exist);
    suite.plain("docs::the_readme_is_short", short);
    suite.single("docs::dashboard_rules_and_runbooks_name_what_is_exposed", monitoring::names);
    suite.plain("docs::what_is_deployed_exists_and_has_time_to_drain", deployed::settings);
    suite.plain("docs::every_alert_has_a_runbook_and_a_test", monitoring::alerts);
    suite.single_if(
        "docs::every_query_of_the_dashboard_has_data",
        monitoring::program,
        monitoring::queries,
    );
}

fn short() {
    let words = README.split_whitespace().count();
    assert!(words <= README_WORDS, "README.md has {words} words, more than {README_WORDS}");
}

/// The first cells of the rows of all tables with this head.
fn table<const CELLS: usize>(text: &str, head: &str) -> BTreeSet<[String; CELLS]> {
    let lines: Vec<&str> = text.lines().map(|line| line.trim_start_matches("// ")).collect();
    let heads = lines.iter().enumerate().filter(|(_, line)| line.starts_with(head));
    let rows = heads
        .flat_map(|(place, _)| lines[place + 2..].iter().take_while(|line| line.starts_with('|')));
    let cells: Vec<[String; CELLS]> = rows
        .map(|row| {
            let mut cells = row.split('|').skip(1).map(|cell| cell.trim().replace('`', ""));
            std::array::from_fn(|_| cells.next().unwrap())
        })
        .collect();
    let set: BTreeSet<_> = cells.iter().cloned().collect();
    assert_eq!(set.len(), cells.len(), "no row of {head} is there twice");
    set
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
    assert_eq!(table(CONFIGURATION, "| flag | environment | default |"), options);
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
    assert_eq!(table(METRICS, "| metric | labels |"), shown);
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
    assert_eq!(table(API, "| code | reason |"), promised);
}
