//! The Lua scripts.

use bytes::Bytes;
use fred::types::scripts::Script;
use fred::types::{FromValue, Value};

use super::Redis;
use super::node::{NoReply, NodeCommand};
use crate::product::ProductId;

#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) try_lease: Script,
    pub(super) fill: Script,
    pub(super) publish: Script,
    pub(super) supersede: Script,
    pub(super) remove_above: Script,
    pub(super) renew: Script,
    pub(super) release: Script,
    pub(super) discard: Script,
    pub(super) ranking: Script,
    pub(super) replication: Script,
    pub(super) access: Script,
}

macro_rules! script {
    ($($file:literal),+) => { Script::from_lua(concat!($(include_str!($file)),+)) };
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            try_lease: script!("revision.lua", "try_lease.lua"),
            fill: script!("revision.lua", "fill.lua"),
            publish: script!("revision.lua", "publish.lua"),
            supersede: script!("revision.lua", "supersede.lua"),
            remove_above: script!("revision.lua", "remove_above.lua"),
            renew: script!("renew.lua"),
            release: script!("release.lua"),
            discard: script!("revision.lua", "discard.lua"),
            ranking: script!("ranking.lua"),
            replication: script!("replication.lua"),
            access: script!("access.lua"),
        }
    }

    /// A label for refusals: an ACL may deny one script what it allows another.
    fn label_of(&self, script: &Script) -> &'static str {
        let labels = [
            (&self.try_lease, "try_lease"),
            (&self.fill, "fill"),
            (&self.publish, "publish"),
            (&self.supersede, "supersede"),
            (&self.remove_above, "remove_above"),
            (&self.renew, "renew"),
            (&self.release, "release"),
            (&self.discard, "discard"),
            (&self.ranking, "ranking"),
        ];
        let label = labels.into_iter().find(|(known, _)| std::ptr::eq(*known, script));
        label.map_or("script", |(_, label)| label)
    }
}

impl Redis {
    /// Runs a script by its hash, or by its text when the server has not cached it: a new or restarted server, or a replica that
    /// became master.
    pub(super) async fn run<R: FromValue>(
        &self,
        script: &Script,
        keys: Vec<Bytes>,
        args: Vec<Value>,
    ) -> Result<R, NoReply> {
        let label = self.scripts.label_of(script);
        let command = |name, script: &str| {
            let count = Value::Integer(i64::try_from(keys.len()).unwrap_or(i64::MAX));
            let mut words = vec![script.to_owned().into(), count];
            words.extend(keys.iter().cloned().map(Value::Bytes));
            words.extend(args.iter().cloned());
            NodeCommand::new(name, words).labelled(label)
        };
        let reply = self.nodes.send(&keys[0], command("EVALSHA", script.sha1())).await;
        let reply = match reply {
            Err(NoReply::Failed(error)) if error.details().starts_with("NOSCRIPT") => {
                let text = script.lua().expect("every script is made from its text");
                self.nodes.send(&keys[0], command("EVAL", text)).await
            }
            reply => reply,
        };
        reply?.convert().map_err(NoReply::Failed)
    }

    /// Runs a script that breaks the lease of `id` and then accesses its entry. While their slot migrates to another server, the
    /// two keys may be on different servers, and a script that needs both fails with TRYAGAIN. Then the lock is deleted first
    /// and the script runs with the entry alone. That is safe: a holder that takes the lease in between reads Postgres after
    /// the commit that breaks the lease here.
    pub(super) async fn run_and_break_lease<R: FromValue>(
        &self,
        script: &Script,
        id: ProductId,
        args: Vec<Value>,
    ) -> Result<R, NoReply> {
        let (entry, lock) = (self.keys().entry(id), self.keys().lock(id));
        match self.run(script, vec![entry.clone(), lock.clone()], args.clone()).await {
            Err(NoReply::Failed(error)) if error.details().starts_with("TRYAGAIN") => {
                let broken = NodeCommand::new("DEL", vec![lock.clone().into()]);
                self.nodes.send(&lock, broken).await?;
                self.run(script, vec![entry], args).await
            }
            reply => reply,
        }
    }
}
