//! The change stream, as Redis keeps it and as instances follow it.

use crate::state::Revision;

/// The most entries of the change stream that somebody has yet to hear.
const MOST_ENTRIES: usize = 6;

/// The place of an entry in the change stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Grows with time, also across a failover (`StreamId`).
    pub id: u8,
    /// Counted in Redis, and so set back by a failover.
    pub number: u8,
}

/// A change, where it stands in the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Told {
    /// Where.
    pub place: Place,
    /// What the product became.
    pub revision: Revision,
}

/// What an instance knows to have been relayed. A number is a commit, and stands for it and all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontier {
    /// The newest before the oldest that was to be relayed when it last looked.
    pub relayed: u8,
    /// What that was before a poll of the stream, which found nothing more, and whose answer is on its way.
    pub polled: Option<u8>,
    /// What memory shows, where it is trusted.
    pub covered: u8,
}

/// The change stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stream {
    told: [Told; MOST_ENTRIES],
    kept: u8,
    /// The last entry that was appended, whether or not it is kept.
    pub end: Place,
}

impl Stream {
    /// Appends; ids go on from what anybody has seen.
    pub fn append(&mut self, revision: Revision, newest_id: u8) {
        self.end = Place { id: newest_id + 1, number: self.end.number + 1 };
        self.told[usize::from(self.kept)] = Told { place: self.end, revision };
        self.kept += 1;
    }

    /// The first entry behind `cursor`.
    #[must_use]
    pub fn after(&self, cursor: Place) -> Option<Told> {
        self.kept().iter().copied().find(|told| told.place.id > cursor.id)
    }

    /// Appends so many changes of other products that only the last of them is kept.
    pub fn flood(&mut self, newest_id: u8) {
        self.forget(u8::MAX);
        self.end.number += 1;
        self.append(Revision::NONE, newest_id);
    }

    fn kept(&self) -> &[Told] {
        &self.told[..usize::from(self.kept)]
    }

    /// Drops the entries up to `id`.
    pub(crate) fn forget(&mut self, id: u8) {
        let gone = self.kept().iter().take_while(|told| told.place.id <= id).count();
        if gone > 0 {
            self.told.rotate_left(gone);
            let left = usize::from(self.kept) - gone;
            self.told[left..].fill(Told::default());
            self.kept = u8::try_from(left).expect("at most as many as fit");
        }
    }

    pub(crate) fn places(&mut self) -> impl Iterator<Item = &mut Place> {
        let told = &mut self.told[..usize::from(self.kept)];
        told.iter_mut().map(|told| &mut told.place).chain([&mut self.end])
    }
}
