//! Detects other catalogues in the same Redis and namespace. Their keys differ, so entries cannot be mixed up; but it is
//! probably a mistake, and operations on the namespace (counting or deleting its keys) affect both.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fred::types::Value;

use super::entry_bytes::millis;
use super::lease::number;
use super::node::NodeCommand;
use super::{Redis, Unavailable};
use crate::findings::Finding;
use crate::metrics::RedisOperation;

/// A catalogue is gone when none of its instances has registered for this long.
const GONE: Duration = Duration::from_secs(60);
/// The TTL of the list, counted from its last write.
const FORGET_CATALOGUE_AFTER: Duration = Duration::from_secs(3_600);

/// The databases of other catalogues in the list, and the catalogues that are gone.
fn listed(list: Value, ours: &str, now: Duration) -> (Vec<String>, Vec<String>) {
    let list: Vec<String> = list.convert().unwrap_or_default();
    let (mut others, mut gone) = (Vec::new(), Vec::new());
    for pair in list.chunks_exact(2).filter(|pair| pair[0] != ours) {
        let (seen, database) = pair[1].split_once(' ').unwrap_or(("0", "unknown"));
        let seen = Duration::from_millis(seen.parse().unwrap_or_default());
        match now.saturating_sub(seen) < GONE {
            true => others.push(database.chars().take(200).collect()),
            false => gone.push(pair[0].clone()),
        }
    }
    (others, gone)
}

fn shared() -> Finding {
    let what = "instances on another database use the same Redis and namespace";
    let cost = "their products are kept apart, but counting or deleting the keys affects both";
    let remedy = "give each catalogue a REDIS_NAMESPACE of its own";
    Finding::warning("namespace", what, cost, remedy).reported()
}

impl Redis {
    /// Registers this catalogue in the list of those that use the namespace, and reads the others. Called every few seconds.
    pub(crate) async fn register_catalogue(&self) -> Result<(), Unavailable> {
        let keys = self.keys().clone();
        let list = keys.catalogues(&self.options.namespace);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let value = format!("{} {}", millis(now), self.options.database);
        let ask = async |name, args: Vec<Value>| {
            let mut words = vec![list.clone().into()];
            words.extend(args);
            let reply = self.nodes.send(&list, NodeCommand::new(name, words));
            self.counted(RedisOperation::Probe, reply).await
        };
        ask("HSET", vec![keys.catalogue.clone().into(), value.into()]).await?;
        ask("PEXPIRE", vec![number(millis(FORGET_CATALOGUE_AFTER))]).await?;
        let (others, gone) = listed(ask("HGETALL", Vec::new()).await?, &keys.catalogue, now);
        for catalogue in gone {
            let _ = ask("HDEL", vec![catalogue.into()]).await;
        }
        self.set_others(others);
        Ok(())
    }

    /// Whether other catalogues are in the list of those that use the namespace. Changes nothing.
    pub(super) async fn check_namespace(&self, ours: &str) -> Option<Finding> {
        let list = self.keys().catalogues(&self.options.namespace);
        let node = self.nodes.of_key(&list)?;
        let listed_ones = node.ask("HGETALL", vec![list.into()]).await.ok()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (others, _) = listed(listed_ones, ours, now);
        let namespace = &self.options.namespace;
        Some(match others.is_empty() {
            true => Finding::fine("namespace", format!("no other database uses {namespace}")),
            false => shared().with_detail(&others.join(", ")),
        })
    }

    fn set_others(&self, others: Vec<String>) {
        let mut known = self.other_catalogues.lock();
        if known.is_empty() && !others.is_empty() {
            tracing::error!(
                namespace = self.options.namespace,
                ours = self.options.database,
                others = others.join(", "),
                "{}",
                shared()
            );
        } else if !known.is_empty() && others.is_empty() {
            tracing::info!(
                namespace = self.options.namespace,
                "instances on other databases have left this Redis and namespace"
            );
        }
        *known = others;
    }

    /// Other catalogues in the same Redis and namespace.
    #[must_use]
    pub fn other_catalogues(&self) -> u64 {
        self.other_catalogues.lock().len() as u64
    }
}
