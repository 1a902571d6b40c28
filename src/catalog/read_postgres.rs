//! Loads read Postgres: rows become entries, absent products tombstones.

use std::collections::HashMap;
use std::sync::Arc;

use super::load::{Load, ids};
use super::singleflight::FreshnessClass;
use super::traced::client_spans;
use super::{Catalog, Error};
use crate::entry::Entry;
use crate::metrics::PostgresShare;
use crate::product::Version;

/// The loads that can be completed. Those of rows that the API cannot express have failed.
pub(super) struct Readable<T> {
    pub(super) loads: Vec<Load>,
    /// Belongs to each load: its lease, if it has one.
    pub(super) with: Vec<T>,
    pub(super) entries: Vec<Entry>,
    /// Belongs to the loads that failed.
    pub(super) failed: Vec<T>,
}

impl Catalog {
    /// Fails the loads of rows that the API cannot express, and returns the others.
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

    /// Reads Postgres: one entry for each load, a tombstone for a product that does not exist.
    pub(super) async fn read_postgres(
        &self,
        loads: &[Load],
    ) -> Result<Vec<Result<Entry, Error>>, Error> {
        // An absent product was deleted after every version that was observed before the read.
        let floors: Vec<Version> = loads.iter().map(Load::newest_observed).collect();
        // Loads of one call share one demand.
        let demand = loads.first().map(|load| Arc::clone(&load.demand)).unwrap_or_default();
        let share = match loads.first().map(|load| load.leader.class()) {
            Some(FreshnessClass::Strict) => PostgresShare::Latest,
            Some(FreshnessClass::Cached) | None => PostgresShare::Loads,
        };
        let spans = client_spans(loads, "postgresql", "load");
        let loaded = self.postgres.load(&ids(loads), &demand, share).await?;
        drop(spans);
        self.record_wait(loads, "hotshelf.queue_wait_ms", loaded.queued);
        let absent = loads.iter().zip(floors).map(|(load, floor)| {
            let version = loaded.last_version(load.leader.id()).max(floor);
            Ok(Entry::tombstone(version, loaded.known_at, self.options.ttl.tombstone()))
        });
        let mut entries: Vec<Result<Entry, Error>> = absent.collect();
        let places: HashMap<_, _> =
            loads.iter().enumerate().map(|(place, load)| (load.leader.id(), place)).collect();
        for product in &loaded.products {
            self.feed.raise_ceiling(product.version);
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
