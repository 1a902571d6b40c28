//! Counts and the environment in which they were taken: of the committed file, or of this run.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::callgrind::Profile;
use crate::environment::Environment;
use crate::operation::Operation;

/// Functions below this share of an operation are left out. If one of them grows, it counts as grown from 0.
const SMALLEST_SHARE: f64 = 0.001;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Baseline {
    pub(crate) environment: Environment,
    operations: BTreeMap<String, Counts>,
}

/// Instructions for one operation.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) instructions: f64,
    /// By function, without its callees.
    pub(crate) own: BTreeMap<String, f64>,
    /// By function of hotshelf, with its callees.
    pub(crate) with_callees: BTreeMap<String, f64>,
}

impl Counts {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn new(profile: &Profile, repeats: usize) -> Self {
        let each = |count: u64| (count as f64 / repeats as f64 * 10.0).round() / 10.0;
        let smallest = each(profile.total()) * SMALLEST_SHARE;
        let large = |counts: &BTreeMap<String, u64>, wanted: fn(&str) -> bool| {
            let counts = counts.iter().map(|(name, count)| (name.clone(), each(*count)));
            counts.filter(|(name, count)| *count >= smallest && wanted(name)).collect()
        };
        Self {
            instructions: each(profile.total()),
            own: large(&profile.own, |_| true),
            with_callees: large(&profile.with_callees, |name| name.contains("hotshelf::")),
        }
    }
}

impl Baseline {
    pub(crate) fn new(environment: Environment) -> Self {
        Self { environment, operations: BTreeMap::new() }
    }

    pub(crate) fn insert(&mut self, operation: Operation, profile: &Profile) {
        let counts = Counts::new(profile, operation.repeats());
        self.operations.insert(operation.name(), counts);
    }

    pub(crate) fn get(&self, operation: Operation) -> Option<&Counts> {
        self.operations.get(&operation.name())
    }

    pub(crate) fn read(file: &Path) -> Result<Self, Error> {
        let name = file.display().to_string();
        let text = std::fs::read(file).map_err(|error| Error::Io(name.clone(), error))?;
        serde_json::from_slice(&text).map_err(|error| Error::Baseline(name, error))
    }

    pub(crate) fn write(&self, file: &Path) -> Result<(), Error> {
        let name = file.display().to_string();
        let text = serde_json::to_string_pretty(self);
        let text = text.map_err(|error| Error::Baseline(name.clone(), error))?;
        std::fs::write(file, text + "\n").map_err(|error| Error::Io(name, error))
    }
}
