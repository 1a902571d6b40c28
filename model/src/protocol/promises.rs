//! What must hold, whatever happens.

use super::{Action, Protocol};
use crate::checker::Step;
use crate::state::{Entry, Instance, Stage, State};

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
/// P3, with the bound: what the frontier says of memory.
pub const MEMORY_COVERS: &str = "memory that is trusted shows what it is proven to cover";
/// P3, with the bound: what the frontier says of Redis.
pub const REDIS_COVERS: &str = "Redis holds nothing older than what is known to be relayed";

/// The promise that a step breaks.
pub(super) fn broken(before: &State, step: &Step<Protocol>) -> Option<&'static str> {
    let after = &step.after;
    let back = |old: Option<Entry>, new: Option<Entry>| {
        old.zip(new).is_some_and(|(old, new)| new.commit < old.commit)
    };
    // A failover loses writes that Redis had acknowledged: no protocol above it can prevent that.
    if step.action != Action::Failover && back(before.redis.entry, after.redis.entry) {
        return Some(REDIS_GOES_ON);
    }
    for (before, after) in before.instances.iter().zip(&after.instances) {
        if back(not_void(before), after.slot.map(|slot| slot.entry)) {
            return Some(MEMORY_GOES_ON);
        }
    }
    copies(after).find_map(|copy| lies(after, copy)).or_else(|| uncovered(after))
}

/// The promise that is broken when nothing more happens.
pub(super) fn broken_at_rest(state: &State) -> Option<&'static str> {
    let trusted = |instance: &&Instance| instance.slot.is_some_and(|slot| slot.trusted);
    let memory = state.instances.iter().filter(trusted).filter_map(not_void);
    let same = memory.chain(state.redis.entry).all(|entry| entry.commit == state.commit);
    (!same).then_some(CONVERGED)
}

/// What is older than the frontier says.
fn uncovered(state: &State) -> Option<&'static str> {
    let old = |instance: &Instance| {
        let trusted = instance.slot.is_some_and(|slot| slot.trusted);
        let shown = not_void(instance).filter(|_| trusted);
        shown.is_some_and(|entry| entry.commit < instance.frontier.covered)
    };
    if state.instances.iter().any(old) {
        return Some(MEMORY_COVERS);
    }
    let relayed = state.instances.iter().map(|instance| instance.frontier.relayed).max();
    let older = state.redis.entry.is_some_and(|held| Some(held.commit) < relayed);
    older.then_some(REDIS_COVERS)
}

fn not_void(instance: &Instance) -> Option<Entry> {
    instance.slot.filter(|slot| !slot.is_void()).map(|slot| slot.entry)
}

fn copies(state: &State) -> impl Iterator<Item = Entry> {
    let held = state.instances.iter().flat_map(|instance| {
        let loaded = instance.load.and_then(|load| match load.stage {
            Stage::Fill(entry) | Stage::Replace(entry) | Stage::Land(entry, _) => Some(entry),
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
    if copy.commit > state.commit || !as_it_was {
        return Some(COMMITTED);
    }
    // Whoever wrote a version that the copy claims to have reached must find at least that write in it.
    let mut writes = state.history.iter().take(usize::from(state.commit) + 1).enumerate();
    let unseen = |(commit, write): (usize, &crate::state::Revision)| {
        !write.deleted
            && write.version <= copy.revision.version
            && commit > usize::from(copy.commit)
    };
    writes.any(unseen).then_some(MIN_VERSION)
}
