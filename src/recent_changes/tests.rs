//! Random operations, compared with a model that keeps every change.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// Few products, so that most changes hit the same ones; and enough that some are not changed again before their generation is
/// merged.
const IDS: [i64; 2] = [6, 100];

/// Every change that was applied, and which of them were dropped.
#[derive(Default)]
struct Model {
    applied: Vec<Applied>,
    published: Vec<(ProductId, Revision, u64)>,
    polls: u64,
}

#[derive(Clone, Copy)]
struct Applied {
    poll: u64,
    /// `None`: every product.
    id: Option<ProductId>,
    revision: Revision,
    kept: bool,
}

impl Model {
    fn newest(&self, id: ProductId, counts: impl Fn(&Applied) -> bool) -> Revision {
        let of_it = self.applied.iter().filter(|change| change.id.is_none_or(|of| of == id));
        let newest = of_it.filter(|change| counts(change)).map(|change| change.revision);
        newest.max().unwrap_or(Revision::NONE)
    }

    fn floor(&self, id: ProductId) -> Revision {
        let published = self.published.iter().filter(|(of, ..)| *of == id);
        let published = published.map(|(_, revision, _)| *revision).max();
        self.newest(id, |change| change.kept).max(published.unwrap_or(Revision::NONE))
    }

    fn drop(&mut self, gone: impl Fn(&Applied) -> bool) {
        self.applied
            .iter_mut()
            .filter(|change| gone(change))
            .for_each(|change| change.kept = false);
    }

    /// A later published change of a product keeps the earlier ones of it.
    fn poll_applied(&mut self, poll: u64) {
        let published = self.published.clone();
        self.published
            .retain(|(id, ..)| published.iter().any(|(of, _, sent)| of == id && *sent >= poll));
        self.polls = poll;
    }
}

fn id(number: i64) -> ProductId {
    ProductId::new(number).expect("positive")
}

fn ids(count: i64) -> impl Iterator<Item = ProductId> {
    (1..=count).map(id)
}

/// A load: its start, the last poll then, and the model's floor then.
type Load = (ProductId, Began, u64, Revision);

/// A covered load has a floor no lower than the floor at its start and every change applied since.
fn check(recent: &RecentChanges, model: &Model, loads: &[Load], products: i64) {
    for id in ids(products) {
        assert_eq!(recent.floor(id), model.floor(id), "{id}");
    }
    for (id, began, polls, floor) in loads {
        let since = model.newest(*id, |change| change.poll > *polls).max(*floor);
        assert!(!recent.covers(*began) || recent.floor_since(*began, *id) >= since);
        let all_kept = model.applied.iter().all(|change| change.kept || change.poll <= *polls);
        assert!(recent.covers(*began) || !all_kept, "rejected without a reason");
    }
}

fn play(seed: u64, generations_merge: bool) {
    let mut random = StdRng::seed_from_u64(seed);
    let recent = RecentChanges::new(1_000);
    let products = IDS[usize::from(generations_merge)];
    let (mut model, mut loads, mut version) = (Model::default(), Vec::<Load>::new(), 0);
    for _ in 0..300 {
        version += 1;
        let some = id(random.random_range(1..=products));
        let deleted = random.random_bool(0.2);
        let revision = Revision { version: Version(version), deleted };
        match random.random_range(0..100) {
            0..45 => {
                let poll = recent.poll_is_sent();
                let truncates = random.random_bool(if generations_merge { 0.005 } else { 0.05 });
                let count = random.random_range(0..3).min(usize::from(!truncates) * 3);
                let changes: Vec<(ProductId, Revision)> =
                    (0..count).map(|_| (id(random.random_range(1..=products)), revision)).collect();
                let floors = match random.random_bool(0.5) {
                    true => Floors::new(changes.iter().copied().collect(), &[]),
                    false => Floors::new(HashMap::default(), std::slice::from_ref(&changes)),
                };
                let below = truncates.then_some(revision.version);
                let new: Vec<Option<ProductId>> =
                    floors.iter().map(|(id, _)| Some(id)).chain(below.map(|_| None)).collect();
                assert!(recent.apply(poll, &Arc::new(floors), below));
                let floor = if truncates { Revision::live(revision.version) } else { revision };
                model.applied.extend(new.into_iter().map(|id| Applied {
                    poll: poll.0,
                    id,
                    revision: floor,
                    kept: true,
                }));
                model.poll_applied(poll.0);
            }
            // Sent, and failed.
            45..50 => drop(recent.poll_is_sent()),
            50..65 => {
                recent.publish(some, revision, random.random_bool(0.5));
                let sent = recent.state.read().sent;
                model.published.push((some, revision, sent));
            }
            65..85 => {
                let floor = model.newest(some, |change| change.kept);
                loads.push((some, recent.begin(some), model.polls, floor));
            }
            85..98 if !generations_merge => {
                let poll = random.random_range(0..=model.polls);
                recent.drop_through(PollNumber(poll));
                model.drop(|change| change.poll <= poll);
            }
            98 if !generations_merge => {
                let poll = recent.poll_is_sent();
                recent.overflow(poll);
                model.drop(|_| true);
                model.polls = poll.0;
                // The poll contained unknown changes, more than fit.
                let all = Applied { poll: poll.0, id: None, revision: Revision::NONE, kept: false };
                model.applied.push(all);
            }
            _ => drop(loads.drain(..loads.len() / 2)),
        }
        check(&recent, &model, &loads, products);
    }
    let all = recent.poll_is_sent();
    assert!(recent.apply(all, &Arc::default(), None));
    recent.drop_through(all);
    assert!(recent.is_empty(), "{} changes are left", recent.len());
    assert!(ids(products).all(|id| recent.floor(id) == Revision::NONE));
}

#[test]
fn a_covered_load_has_a_floor_no_lower_than_any_change_since_it_began() {
    (0..25).for_each(|seed| play(seed, false));
}

#[test]
fn merged_generations_have_the_same_floors() {
    (0..8).for_each(|seed| play(seed, true));
}

#[test]
fn changes_that_do_not_fit_are_not_added_and_an_overflow_rejects_earlier_loads() {
    let recent = RecentChanges::new(1);
    let change = |number, version| {
        let single = HashMap::from_iter([(id(number), Revision::live(Version(version)))]);
        Arc::new(Floors::new(single, &[]))
    };
    let first = recent.poll_is_sent();
    assert!(recent.apply(first, &change(1, 1), None));
    let began = recent.begin(id(1));
    let second = recent.poll_is_sent();
    assert!(!recent.apply(second, &change(2, 2), None));
    assert!(recent.covers(began) && recent.len() == 1);
    recent.overflow(second);
    assert!(!recent.covers(began) && recent.is_empty());
    assert!(recent.covers(recent.begin(id(1))));
    let during = recent.begin(id(1));
    let third = recent.poll_is_sent();
    assert!(recent.apply(third, &Arc::default(), None));
    recent.overflow_ends(third);
    assert!(!recent.covers(during), "it may have read an old entry from Redis");
}

#[test]
fn after_a_reset_loads_are_rejected_until_a_poll_is_applied() {
    let recent = RecentChanges::new(10);
    let sent = recent.poll_is_sent();
    recent.publish(id(1), Revision::live(Version(9)), true);
    let before = recent.begin(id(1));
    recent.reset();
    assert_eq!(recent.floor(id(1)), Revision::NONE);
    assert!(!recent.covers(before) && !recent.covers(recent.begin(id(1))));
    let poll = recent.poll_is_sent();
    assert!(poll.0 > sent.0 && recent.apply(poll, &Arc::default(), None));
    assert!(!recent.covers(before) && recent.covers(recent.begin(id(1))));
}
