//! The scripts, and how one is run.

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::{ClientLike, LuaInterface};
use fred::types::scripts::Script;
use fred::types::{FromValue, Key, Value};

use super::Redis;

/// Every script of the protocol.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) try_lease: Script,
    pub(super) fill: Script,
    pub(super) publish: Script,
    pub(super) supersede: Script,
    pub(super) append: Script,
    pub(super) renew: Script,
    pub(super) release: Script,
    pub(super) discard: Script,
    pub(super) ranking: Script,
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
            append: script!("append.lua"),
            renew: script!("renew.lua"),
            release: script!("release.lua"),
            discard: script!("revision.lua", "discard.lua"),
            ranking: script!("ranking.lua"),
        }
    }
}

impl Redis {
    /// Runs a script by its hash, and by its text on a server that does not know it yet: a new one, one
    /// that was restarted, a replica that became master.
    pub(super) async fn run<R: FromValue>(
        &self,
        script: &Script,
        keys: Vec<Key>,
        args: Vec<Value>,
    ) -> Result<R, Error> {
        let client: &Client = self.pool.next_connected();
        let client = client.with_options(&self.command);
        match client.evalsha(script.sha1().clone(), keys.clone(), args.clone()).await {
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                let text = script.lua().expect("every script is made from its text");
                client.eval(text.clone(), keys, args).await
            }
            result => result,
        }
    }
}
