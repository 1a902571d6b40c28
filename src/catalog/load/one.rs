//! One product being loaded.

use std::sync::Arc;

use crate::caller::{Caller, SpanKey};
use crate::catalog::singleflight::Leader;
use crate::entry::{Entry, Freshness};
use crate::hot_cache::LoadTicket;
use crate::postgres::Demand;
use crate::product::{ProductId, Version};
use crate::traces::Span;

/// One product being loaded: from its id to the entry that completes it.
#[derive(Debug)]
pub(in crate::catalog) struct Load {
    pub(in crate::catalog) leader: Leader,
    pub(in crate::catalog) ticket: LoadTicket,
    pub(in crate::catalog) freshness: Freshness,
    /// The caller that started it, whose share of Redis it uses.
    pub(in crate::catalog) caller: Caller,
    pub(in crate::catalog) demand: Arc<Demand>,
    /// The newest entry read from Redis, which a stale answer may use if the load fails.
    pub(in crate::catalog) seen: Option<Entry>,
    /// The call that started it, and the span of its loads, if the call is traced.
    pub(in crate::catalog) call: SpanKey,
    pub(in crate::catalog) span: Span,
}

impl Load {
    pub(in crate::catalog) fn unless_abandoned(self) -> Option<Self> {
        Some(Self { leader: self.leader.unless_abandoned()?, ..self })
    }

    pub(in crate::catalog) fn newest_observed(&self) -> Version {
        let seen = self.seen.as_ref().map(|seen| seen.revision().version);
        self.ticket.floor().version.max(seen.unwrap_or_default())
    }
}

/// The caller whose share of Redis a command uses: of loads that share it, the first one's, because they are few.
pub(super) fn caller(loads: &[Load]) -> Caller {
    loads.first().map_or(Caller::BACKGROUND, |load| load.caller)
}

pub(in crate::catalog) fn ids(loads: &[Load]) -> Vec<ProductId> {
    loads.iter().map(|load| load.leader.id()).collect()
}
