//! A write through the API, `src/catalog/write.rs`.

use super::{Action, Moment, Writer, name};
use crate::state::{Lock, State, Write, Writing};

impl Moment<'_> {
    /// Whatever the instance's write does next, or begins one.
    pub(super) fn write(&mut self, at: usize) {
        let Some(write) = self.instance(at).write else { return self.commit(at) };
        let protections = self.protocol.protections;
        match write.stage {
            Writing::Offer => self.will(Action::Offer(name(at)), |state| {
                state.instances[at].offer(&write, &protections);
                state.write_on(at, Some(Writing::Publish));
            }),
            Writing::Publish => self.will(Action::Publish(name(at)), |state| {
                if protections.writes_break_lease {
                    state.redis.lock = Lock::Free;
                }
                if state.redis.entry.is_none() && !protections.writes_only_replace {
                    state.redis.entry = Some(write.entry);
                }
                state.replace(write.entry, protections.redis_compares);
                state.write_on(at, Some(Writing::Append));
            }),
            Writing::Append => self.will(Action::Append(name(at)), |state| {
                state.append(write.entry.revision, &protections);
                state.write_on(at, None);
            }),
        }
        if self.protocol.scenario.redis_fails && write.stage != Writing::Offer {
            self.may(Action::RedisFails(name(at)), |state| state.write_on(at, None));
        }
    }

    fn commit(&mut self, at: usize) {
        let scenario = self.protocol.scenario;
        let writable = !self.state.truth().revision.deleted;
        let writes = self.state.instances.iter().filter(|instance| instance.write.is_some());
        if writes.count() >= scenario.api || self.state.commit == scenario.writes || !writable {
            return;
        }
        let writer = Writer::Api(name(at));
        self.may(Action::Update(writer), |state| state.begin_write(at, false));
        if scenario.deletions {
            self.may(Action::Delete(writer), |state| state.begin_write(at, true));
        }
    }
}

impl State {
    fn begin_write(&mut self, at: usize, deleted: bool) {
        self.commit_write(deleted);
        let entry = self.truth();
        self.instances[at].write =
            Some(Write { stage: Writing::Offer, entry, overtaken: false, trusted: true });
    }

    fn write_on(&mut self, at: usize, stage: Option<Writing>) {
        let write = self.instances[at].write;
        self.instances[at].write = write.zip(stage).map(|(write, stage)| Write { stage, ..write });
    }
}
