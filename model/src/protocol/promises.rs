//! The promises that must hold in every execution.

use super::{Action, Protocol};
use crate::checker::Step;
use crate::protections::Protections;
use crate::state::{Entry, From, Instance, Load, Revision, Stage, State};

/// P2 in Redis.
pub const REDIS_MONOTONIC: &str = "Redis does not go back to an older version of what it holds";
/// P2 in memory.
pub const MEMORY_MONOTONIC: &str = "memory does not go back to an older version of what it holds";
/// For every copy in any tier.
pub const COMMITTED: &str = "nothing is held that was never committed";
/// P4.
pub const MIN_VERSION: &str = "a copy that claims a version is not older than it";
/// P3 without the bound, in a quiescent state.
pub const CONVERGED: &str = "in the end, whatever may be served is what Postgres holds";
/// In a quiescent state memory can keep the result of a load.
pub const KEEPABLE: &str = "in the end, what Postgres holds is not below any floor";
/// P3 with the bound, for memory.
pub const MEMORY_PROVEN: &str = "memory that is trusted is not older than its proof";
/// P3 with the bound, for Redis.
pub const REDIS_PROVEN: &str = "what Redis held is not taken for current when older than the proof";

/// The promise that a step breaks.
pub(super) fn broken(before: &State, step: &Step<Protocol>) -> Option<&'static str> {
    let after = &step.after;
    let back = |old: Option<Entry>, new: Option<Entry>| {
        old.zip(new).is_some_and(|(old, new)| new.commit < old.commit && !after.is_lost(old.commit))
    };
    // A failover loses writes that Redis had acknowledged. No protocol above Redis can prevent that.
    // Entries of an epoch that is over are not read again.
    let same = step.action != Action::Failover
        && before.redis.scope == after.redis.scope
        && is_of_epoch(after, after.redis.scope);
    if same && back(before.redis.entry, after.redis.entry) {
        return Some(REDIS_MONOTONIC);
    }
    let step_after = after;
    for (before, after) in before.instances.iter().zip(&after.instances) {
        let epoch = is_of_epoch(step_after, after.feed.epoch);
        if epoch && back(before.slot.map(|slot| slot.entry), after.slot.map(|slot| slot.entry)) {
            return Some(MEMORY_MONOTONIC);
        }
    }
    copies(after).find_map(|copy| mislabelled(after, copy)).or_else(|| unproven(before, step))
}

fn is_of_epoch(state: &State, epoch: u8) -> bool {
    state.postgres.epoch == epoch && state.postgres.timeline == state.postgres.epoch_timeline
}

/// The promise that is broken in a quiescent state.
pub(super) fn broken_when_quiescent(
    state: &State,
    protections: &Protections,
) -> Option<&'static str> {
    let truth = state.truth();
    let memory = state.instances.iter().filter_map(served);
    let redis = state.redis.entry.filter(|entry| is_accepted(state, entry, protections));
    if memory.chain(redis).any(|entry| entry.commit != truth.commit) {
        return Some(CONVERGED);
    }
    let below = |instance: &Instance| {
        instance.feed.previous.is_some() && truth.revision < instance.changes.floor()
    };
    state.instances.iter().any(below).then_some(KEEPABLE)
}

/// Whether an instance that polls would accept `entry` from Redis. As long as neither Redis nor Postgres has lost anything,
/// every entry counts.
fn is_accepted(state: &State, entry: &Entry, protections: &Protections) -> bool {
    if state.clock == 0 && state.redis.replication == 0 && state.postgres.timeline == 0 {
        return true;
    }
    let accepts = |instance: &Instance| {
        instance.feed.previous.is_some()
            && instance.feed.epoch == state.redis.scope
            && entry.revision >= instance.changes.floor()
            && state.is_current(instance, entry, protections)
    };
    state.instances.iter().any(accepts)
}

/// The promise that a copy breaks because it is older than a proof.
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
    let accepted = matches!(from, From::Redis | From::RedisUnderLease)
        && step.after.instances[at].load.is_none();
    (accepted && entry.commit < ticket.proof).then_some(REDIS_PROVEN)
}

/// The entry that memory may serve.
fn served(instance: &Instance) -> Option<Entry> {
    let slot = instance.slot.filter(|slot| slot.trusted && !slot.invalidated);
    slot.map(|slot| slot.entry).filter(|_| instance.feed.previous.is_some())
}

fn copies(state: &State) -> impl Iterator<Item = Entry> {
    let held = state.instances.iter().flat_map(|instance| {
        let loaded = instance.load.and_then(|load| match load.stage {
            Stage::Fill(entry) | Stage::Replace(entry) | Stage::Finish(entry, _) => Some(entry),
            Stage::ReadRedis | Stage::TryLease | Stage::Select | Stage::SelectWithoutLease => None,
        });
        [instance.slot.map(|slot| slot.entry), loaded].into_iter().flatten()
    });
    held.chain(state.redis.entry)
}

/// The promise that a copy breaks because its revision is not that of the commit it shows.
fn mislabelled(state: &State, copy: Entry) -> Option<&'static str> {
    let shown = state.history[usize::from(copy.commit)];
    let as_it_was = if shown.deleted { copy.revision.deleted } else { copy.revision == shown };
    if copy.commit > state.newest || !as_it_was {
        return Some(COMMITTED);
    }
    if state.is_lost(copy.commit) {
        return None;
    }
    // If the copy satisfies a `min_version`, it must include the write of that version.
    let unseen = |commit: u8| {
        let write: Revision = state.history[usize::from(commit)];
        !state.is_lost(commit) && !write.deleted && write.version <= copy.revision.version
    };
    (copy.commit + 1..=state.newest).any(unseen).then_some(MIN_VERSION)
}
