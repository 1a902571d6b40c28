//! What the files of `deploy/` and docker-compose.yml set exists, and they leave the program the time to drain.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::CommandFactory;
use hotshelf::config::Cli;

const DEPLOYMENT: &str = include_str!("../../../deploy/kubernetes/deployment.yaml");
const UNIT: &str = include_str!("../../../deploy/systemd/hotshelf.service");
const UNIT_SETTINGS: &str = include_str!("../../../deploy/systemd/hotshelf.default");
const COMPOSE: &str = include_str!("../../../docker-compose.yml");

pub fn settings() {
    let command = Cli::command();
    let options = command.get_arguments().filter_map(|option| {
        let default = option.get_default_values().first()?.to_str()?;
        Some((option.get_env()?.to_str()?, default))
    });
    let defaults: BTreeMap<&str, &str> = options.collect();
    let of_pod = DEPLOYMENT.lines().filter_map(|line| {
        let entry = line.trim().strip_prefix("- {name: ")?.strip_suffix('}')?;
        entry.split_once(", value: ")
    });
    let of_pod: BTreeMap<&str, &str> = of_pod.collect();
    let of_unit = UNIT_SETTINGS.lines().filter_map(|line| line.strip_prefix('#')?.split_once('='));
    let set = of_pod.clone().into_iter().chain(of_unit);
    let unknown: Vec<&str> =
        set.map(|(name, _)| name).filter(|name| !defaults.contains_key(name)).collect();
    assert!(unknown.is_empty(), "no options: {unknown:?}");
    assert!(of_pod.len() >= 5, "{of_pod:?}");

    for (text, key, set) in [
        (DEPLOYMENT, "terminationGracePeriodSeconds: ", &of_pod),
        (UNIT, "TimeoutStopSec=", &defaults),
        (COMPOSE, "stop_grace_period: ", &defaults),
    ] {
        let given = text.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap();
        let given = humantime::parse_duration(&format!("{}s", given.trim_end_matches('s')));
        let drain = ["DRAIN_DELAY", "DRAIN_GRACE"].map(|name| set[name]);
        let drain: Duration =
            drain.map(|time| humantime::parse_duration(time).unwrap()).iter().sum();
        assert!(given.unwrap() > drain, "{key} is not longer than the drain, {drain:?}");
    }
}
