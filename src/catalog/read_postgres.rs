//! What loads ask of Postgres.

use std::collections::HashMap;
use std::sync::Arc;

use super::load::{Load, ids};
use super::singleflight::FreshnessClass;
use super::{Catalog, Error};
use crate::entry::Entry;
use crate::metrics::PostgresShare;
use crate::product::Version;

/// What was read, without the products that cannot be served.
pub(super) struct Readable<T> {
    pub(super) loads: Vec<Load>,
    /// What goes with each load: its lease, where it has one.
    pub(super) with: Vec<T>,
    pub(super) entries: Vec<Entry>,
    /// What went with the loads that failed.
    pub(super) failed: Vec<T>,
}

impl Catalog {
    /// Fails the loads of products that cannot be served, and returns the others.
    pub(super) fn readable<T>(
        &self,
        loads: Vec<Load>,
        with: Vec<T>,
        entries: Vec<Result<Entry, Error>>,
    ) -> Readable<T> {
        let mut readable = Readable {
            loads: Vec::with_capacity(loads.len()),
            with: Vec::with_capacity(loads.len()),
            entries: Vec::with_capacity(loads.len()),
            failed: Vec::new(),
        };
        for ((load, with), entry) in loads.into_iter().zip(with).zip(entries) {
            match entry {
                Ok(entry) => {
                    readable.loads.push(load);
                    readable.with.push(with);
                    readable.entries.push(entry);
                }
                Err(error) => {
                    readable.failed.push(with);
                    self.fail(vec![load], &error);
                }
            }
        }
        readable
    }

    /// Reads Postgres; one entry for each load, a tombstone for a product that is not there.
    pub(super) async fn read_postgres(
        &self,
        loads: &[Load],
    ) -> Result<Vec<Result<Entry, Error>>, Error> {
        // A product that is gone was gone after every version that was heard of before the read.
        let floors: Vec<Version> = loads.iter().map(Load::newest_observed).collect();
        // Boarded together, so wanted together.
        let demand = loads.first().map(|load| Arc::clone(&load.demand)).unwrap_or_default();
        let share = match loads.first().map(|load| load.leader.class()) {
            Some(FreshnessClass::Strict) => PostgresShare::Latest,
            Some(FreshnessClass::Cached) | None => PostgresShare::Loads,
        };
        let loaded = self.postgres.load(&ids(loads), &demand, share).await?;
        let absent = loads.iter().zip(floors).map(|(load, floor)| {
            let version = loaded.last_version(load.leader.id()).max(floor);
            Ok(Entry::tombstone(version, loaded.known_at, self.options.ttl.tombstone()))
        });
        let mut entries: Vec<Result<Entry, Error>> = absent.collect();
        let places: HashMap<_, _> =
            loads.iter().enumerate().map(|(place, load)| (load.leader.id(), place)).collect();
        for product in &loaded.products {
            self.feed.has_given_out(product.version);
            if let Some(place) = places.get(&product.id) {
                let ttl = self.options.ttl.product();
                entries[*place] = Ok(Entry::live(product, loaded.known_at, ttl));
            }
        }
        for (id, why) in loaded.broken {
            if let Some(place) = places.get(&id) {
                entries[*place] = Err(Error::Unreadable(why));
            }
        }
        Ok(entries)
    }
}
