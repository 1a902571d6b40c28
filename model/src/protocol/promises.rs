//! What must hold, whatever happens.

use super::{Action, Protocol};
use crate::checker::Step;
use crate::protections::Protections;
use crate::state::{Entry, From, Instance, Load, Revision, Stage, State};

/// P2 in Redis.
pub const REDIS_GOES_ON: &str = "Redis does not go back to an older version of what it holds";
/// P2 in memory.
pub const MEMORY_GOES_ON: &str = "memory does not go back to an older version of what it holds";
/// Of every copy anywhere.
pub const COMMITTED: &str = "nothing is held that was never committed";
/// P4.
pub const MIN_VERSION: &str = "a copy that claims a version is not older than it";
/// P3, without the bound.
pub const CONVERGED: &str = "in the end, whatever may be served is what Postgres holds";
/// In the end a load can be kept.
pub const KEEPS: &str = "in the end, what Postgres holds is not below any floor";
/// P3, with the bound, of memory.
pub const MEMORY_PROVEN: &str = "memory that is trusted is not older than its proof";
/// P3, with the bound, of Redis.
pub const REDIS_PROVEN: &str = "what Redis held is not taken for current when older than the proof";

/// The promise that a step breaks.
pub(super) fn broken(before: &State, step: &Step<Protocol>) -> Option<&'static str> {
    let after = &step.after;
    let back = |old: Option<Entry>, new: Option<Entry>| {
        old.zip(new).is_some_and(|(old, new)| new.commit < old.commit && !after.is_lost(old.commit))
    };
    // A failover loses writes that Redis had acknowledged: no protocol above it can prevent that.
    // And what is kept for an epoch that is over is not read again.
    let same = step.action != Action::Failover
        && before.redis.scope == after.redis.scope
        && is_of_epoch(after, after.redis.scope);
    if same && back(before.redis.entry, after.redis.entry) {
        return Some(REDIS_GOES_ON);
    }
    let step_after = after;
    for (before, after) in before.instances.iter().zip(&after.instances) {
        let epoch = is_of_epoch(step_after, after.feed.epoch);
        if epoch && back(before.slot.map(|slot| slot.entry), after.slot.map(|slot| slot.entry)) {
            return Some(MEMORY_GOES_ON);
        }
    }
    copies(after).find_map(|copy| lies(after, copy)).or_else(|| unproven(before, step))
}

fn is_of_epoch(state: &State, epoch: u8) -> bool {
    state.postgres.epoch == epoch && state.postgres.timeline == state.postgres.epoch_timeline
}

/// The promise that is broken when nothing more happens.
pub(super) fn broken_at_rest(state: &State, protections: &Protections) -> Option<&'static str> {
    let truth = state.truth();
    let memory = state.instances.iter().filter_map(served);
    let redis = state.redis.entry.filter(|entry| is_taken(state, entry, protections));
    if memory.chain(redis).any(|entry| entry.commit != truth.commit) {
        return Some(CONVERGED);
    }
    let below = |instance: &Instance| {
        instance.feed.previous.is_some() && truth.revision < instance.changes.floor()
    };
    state.instances.iter().any(below).then_some(KEEPS)
}

/// Whether an instance that follows the changes takes `entry` from Redis. As long as neither Redis nor Postgres lost anything, whether or not it does.
fn is_taken(state: &State, entry: &Entry, protections: &Protections) -> bool {
    if state.clock == 0 && state.redis.replication == 0 && state.postgres.timeline == 0 {
        return true;
    }
    let takes = |instance: &Instance| {
        instance.feed.previous.is_some()
            && instance.feed.epoch == state.redis.scope
            && entry.revision >= instance.changes.floor()
            && state.is_current(instance, entry, protections)
    };
    state.instances.iter().any(takes)
}

/// What is older than what was proven.
fn unproven(before: &State, step: &Step<Protocol>) -> Option<&'static str> {
    let old = |instance: &Instance| {
        let old = |entry: Entry| entry.commit < instance.feed.proof;
        is_of_epoch(&step.after, instance.feed.epoch) && served(instance).is_some_and(old)
    };
    if step.after.instances.iter().any(old) {
        return Some(MEMORY_PROVEN);
    }
    let Action::Finish(at) = step.action else { return None };
    let at = usize::from(at);
    let Some(Load { stage: Stage::Finish(entry, from), ticket }) = before.instances[at].load else {
        return None;
    };
    let taken = matches!(from, From::Redis | From::RedisUnderLease)
        && step.after.instances[at].load.is_none();
    (taken && entry.commit < ticket.proof).then_some(REDIS_PROVEN)
}

/// What memory may serve.
fn served(instance: &Instance) -> Option<Entry> {
    let slot = instance.slot.filter(|slot| slot.trusted && !slot.void);
    slot.map(|slot| slot.entry).filter(|_| instance.feed.previous.is_some())
}

fn copies(state: &State) -> impl Iterator<Item = Entry> {
    let held = state.instances.iter().flat_map(|instance| {
        let loaded = instance.load.and_then(|load| match load.stage {
            Stage::Fill(entry) | Stage::Replace(entry) | Stage::Finish(entry, _) => Some(entry),
            Stage::AskRedis | Stage::AskLease | Stage::Select | Stage::SelectWithoutLease => None,
        });
        [instance.slot.map(|slot| slot.entry), loaded].into_iter().flatten()
    });
    held.chain(state.redis.entry)
}

/// What a copy says of itself, and is not so.
fn lies(state: &State, copy: Entry) -> Option<&'static str> {
    let shown = state.history[usize::from(copy.commit)];
    let as_it_was = if shown.deleted { copy.revision.deleted } else { copy.revision == shown };
    if copy.commit > state.newest || !as_it_was {
        return Some(COMMITTED);
    }
    if state.is_lost(copy.commit) {
        return None;
    }
    // A caller that wrote a version which the copy claims to have reached must find at least that write in it.
    let unseen = |commit: u8| {
        let write: Revision = state.history[usize::from(commit)];
        !state.is_lost(commit) && !write.deleted && write.version <= copy.revision.version
    };
    (copy.commit + 1..=state.newest).any(unseen).then_some(MIN_VERSION)
}
