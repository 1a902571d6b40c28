//! The memory of an instance, `src/hot_cache.rs`, and its ear on the change stream,
//! `src/catalog/invalidation.rs` and `Follower` in `src/redis/changes.rs`.

use super::{Action, Moment, name};
use crate::protections::Protections;
use crate::state::{Entry, Instance, Load, Relay, Revision, Row, Slot, Stage, Write};

impl Moment<'_> {
    /// Hears the next change, or starts anew.
    pub(super) fn follow(&mut self, at: usize) {
        self.replay(at);
        if self.instance(at).frontier.polled.is_some() {
            return;
        }
        let protections = self.protocol.protections;
        let Some(cursor) = self.instance(at).cursor else { return self.restart(at) };
        let stream = self.state.redis.stream;
        let next = stream.after(cursor);
        let gap = match next {
            Some(told) => told.place.number != cursor.number + 1,
            None => stream.end.id < cursor.id,
        };
        if gap && protections.gap_detection {
            self.will(Action::FindGap(name(at)), |state| {
                let instance = &mut state.instances[at];
                instance.cursor = None;
                instance.replay = protections.replay;
                if !protections.void_after_restart {
                    instance.distrust();
                }
            });
        } else if let Some(told) = next {
            self.will(Action::Hear(name(at)), |state| {
                let instance = &mut state.instances[at];
                instance.cursor = Some(told.place);
                instance.invalidate(told.revision, &protections);
            });
        }
    }

    /// `Follower::restart`: begins at the end of the stream.
    fn restart(&mut self, at: usize) {
        let voids = self.protocol.protections.void_after_restart;
        self.will(Action::Restart(name(at)), |state| {
            let instance = &mut state.instances[at];
            instance.cursor = Some(state.redis.stream.end);
            // What is trusted from here on was read after this.
            instance.frontier.covered = instance.frontier.covered.max(instance.frontier.relayed);
            if voids {
                instance.distrust();
            }
        });
    }

    /// `Postgres::replay_changes`.
    fn replay(&mut self, at: usize) {
        let instance = self.instance(at);
        let waits = self.protocol.protections.replay_after_relay && instance.relay != Relay::Claim;
        if instance.replay && !waits {
            self.will(Action::Replay(name(at)), |state| {
                state.instances[at].replay = false;
                state.move_rows(Row::Relayed, Row::Outbox);
            });
        }
    }
}

impl Instance {
    /// `HotCache::begin_load`.
    pub(super) fn begin_load(&mut self, protections: &Protections) {
        let floor = self.slot.map_or(Revision::NONE, |slot| slot.floor);
        let floor = if protections.flight_floor { floor } else { Revision::NONE };
        self.load = Some(Load { stage: Stage::AskRedis, floor, seen: 0, trusted: true });
    }

    /// `HotCache::invalidate`.
    fn invalidate(&mut self, revision: Revision, protections: &Protections) {
        self.raise_floor(revision, protections);
        if let Some(slot) = &mut self.slot {
            slot.floor = slot.floor.max(revision);
        }
    }

    /// `HotCache::offer`.
    pub(super) fn offer(&mut self, write: &Write, protections: &Protections) {
        self.raise_floor(write.entry.revision, protections);
        if !(write.overtaken && protections.write_floor) {
            self.keep(write.entry, write.trusted, protections);
        }
    }

    /// `LoadTicket::finish`. Returns whether the result was not below the floor.
    pub(super) fn finish(&mut self, entry: Entry, load: &Load, protections: &Protections) -> bool {
        let finished = entry.revision >= load.floor;
        if finished {
            self.keep(entry, load.trusted, protections);
        }
        finished
    }

    /// `HotCache::keep`.
    fn keep(&mut self, entry: Entry, trusted: bool, protections: &Protections) {
        let trusted = match self.slot {
            Some(held) if entry.revision < held.floor && protections.slot_compares => return,
            Some(held) if held.entry.revision == entry.revision => trusted || held.trusted,
            _ => trusted,
        };
        self.slot = Some(Slot { entry, floor: entry.revision, trusted });
    }

    /// `HotCache::void_before`.
    fn distrust(&mut self) {
        if let Some(slot) = &mut self.slot {
            slot.trusted = false;
        }
        if let Some(load) = &mut self.load {
            load.trusted = false;
        }
        if let Some(write) = &mut self.write {
            write.trusted = false;
        }
    }

    fn raise_floor(&mut self, revision: Revision, protections: &Protections) {
        if let Some(load) = &mut self.load
            && protections.flight_floor
        {
            load.floor = load.floor.max(revision);
        }
        if let Some(write) = &mut self.write {
            write.overtaken |= revision > write.entry.revision;
        }
    }
}
