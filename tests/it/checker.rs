//! The checker of `loadtest/checker`: instances keep every guarantee under its load, and it detects each violation
//! in a history.

use std::time::Duration;

use checker::history::{
    Ack, Clock, Committed, History, Kind, Read, ReadFreshness, Seen, State, Tier,
};
use checker::staleness::{Row, Since};
use checker::verify::Rule;
use checker::{Load, Target, run, verify};

use crate::harness::{HANG, Stack, StallMeter, Suite, too_busy};

/// P3. The test adds an allowance for a busy machine: the longest stall that was measured in the run.
const BOUND: Duration = Duration::from_secs(1);
const PRODUCT: i64 = 7;

pub fn register(suite: &mut Suite<'_>) {
    suite.alone(|suite| {
        suite.both("checker::instances_keep_every_promise_under_mixed_load", mixed_load);
    });
    suite.plain("checker::a_history_that_breaks_no_rule_is_found_sound", sound);
    suite.plain("checker::it_sees_each_kind_of_violation", each_kind);
    suite.plain("checker::what_may_have_been_right_is_no_violation", doubt);
    suite.plain("checker::staleness_counts_per_change_and_instance", staleness);
}

async fn mixed_load(stack: Stack) {
    let (a, b, c) = tokio::join!(stack.node(), stack.node(), stack.node());
    let instances = [&a, &b, &c].map(|node| node.channel.clone()).to_vec();
    let load = Load {
        read_rate: 200.0,
        write_rate: 10.0,
        share: Some(0.2),
        duration: Duration::from_secs(12),
        hot: 50,
        cold: 100,
        bound: HANG / 4,
        ..Load::default()
    };
    let stalls = StallMeter::start();
    let outcome = run(&Target { instances, sql: stack.sql.clone() }, &load).await.unwrap();
    // Staleness of an instance may exceed the bound by the time in which it did not run.
    let allowance = stalls.longest().max(outcome.longest_delay());
    let bound = BOUND + allowance;
    let verdict = verify(&outcome.history, bound);
    let report = checker::report::Report { outcome: &outcome, verdict: &verdict };
    assert_eq!(report.violations().len(), 0, "P3 with {allowance:?} for the machine\n{report}");
    if let Some(why) = outcome.too_busy() {
        too_busy(&why);
    }
    assert!(report.is_sound(), "{report}");
    assert!(verdict.staleness.max() <= checker::history::micros(bound), "{report}");
    let (reads, acks) = (outcome.history.reads.len(), outcome.history.acks.len());
    if reads < 1_000 || acks < 20 {
        too_busy(&format!("{reads} reads and {acks} changes in {:?}", load.duration));
    }
}

/// Three states: 10, then 20 confirmed at 1000, then 30 confirmed at 2000.
fn history() -> History {
    let mut history = History { instances: 2, ..History::default() };
    commit(&mut history, 10, false, None);
    commit(&mut history, 20, false, Some((900, 1_000)));
    commit(&mut history, 30, false, Some((1_900, 2_000)));
    history
}

fn commit(history: &mut History, version: i64, deleted: bool, confirmed: Option<(u64, u64)>) {
    let state = State { version, deleted };
    let written = confirmed.map_or(0, |(sent, _)| sent + 50);
    let write = u32::try_from(version).ok();
    history.committed.push(Committed { product: PRODUCT, state, write, written });
    if let Some((sent, acked)) = confirmed {
        history.acks.push(Ack { product: PRODUCT, state, kind: Kind::Sql, sent, acked });
    }
}

fn product(version: i64) -> Seen {
    Seen::Product(version, u32::try_from(version).ok())
}

fn read(begin: u64, end: u64, instance: u8, wish: ReadFreshness, seen: Seen) -> Read {
    let (tier, late, stale) = (Tier::Hot, 0, false);
    Read { product: PRODUCT, instance, tier, late, wish, seen, stale, begin, end }
}

fn plain(begin: u64, end: u64, seen: Seen) -> Read {
    read(begin, end, 0, ReadFreshness::Plain, seen)
}

/// The rules that this history breaks, with a bound of 500 us.
fn broken(history: &History) -> Vec<Rule> {
    let verdict = verify(history, Duration::from_micros(500));
    verdict.violations.iter().map(|violation| violation.rule).collect()
}

fn broken_by(reads: &[Read]) -> Vec<Rule> {
    broken(&History { reads: reads.to_vec(), ..history() })
}

fn sound() {
    let reads = [
        plain(100, 200, product(10)),
        // An old version within the bound; at the other instance; and at the same one, concurrent with the newer read.
        plain(1_400, 1_450, product(10)),
        plain(1_500, 1_700, product(20)),
        plain(1_480, 1_600, product(10)),
        read(1_460, 1_500, 1, ReadFreshness::Latest, product(20)),
        read(1_950, 2_100, 1, ReadFreshness::MinVersion(30), product(30)),
        read(2_400, 2_450, 1, ReadFreshness::MaxStaleness(500), product(30)),
    ];
    assert_eq!(broken_by(&reads), []);
}

fn each_kind() {
    let once = |rule, reads: &[Read]| assert_eq!(broken_by(reads), [rule], "{reads:?}");
    // An unknown version; content of another version; content of no write; before it was sent; absent, never deleted.
    once(Rule::Committed, &[plain(100, 200, product(11))]);
    once(Rule::Committed, &[plain(1_100, 1_200, Seen::Product(20, Some(10)))]);
    once(Rule::Committed, &[plain(1_100, 1_200, Seen::Product(20, None))]);
    once(Rule::Committed, &[plain(700, 800, product(20))]);
    once(Rule::Committed, &[plain(1_100, 1_200, Seen::Absent)]);
    once(Rule::NeverBack, &[plain(1_100, 1_200, product(20)), plain(1_201, 1_300, product(10))]);
    once(Rule::MinVersion, &[read(1_100, 1_200, 0, ReadFreshness::MinVersion(20), product(10))]);
    once(
        Rule::MinVersion,
        &[read(1_100, 1_200, 0, ReadFreshness::MinVersion(20), Seen::NotReached)],
    );
    once(Rule::Latest, &[read(1_001, 1_200, 0, ReadFreshness::Latest, product(10))]);
    once(
        Rule::MaxStaleness,
        &[read(1_300, 1_400, 0, ReadFreshness::MaxStaleness(200), product(10))],
    );
    once(Rule::Bound, &[plain(1_502, 1_600, product(10))]);

    let mut lost = history();
    lost.committed.retain(|row| row.state.version != 30);
    assert_eq!(broken(&lost), [Rule::NotLost]);

    let mut revived = history();
    commit(&mut revived, 30, true, Some((2_900, 3_000)));
    revived.reads = vec![plain(3_100, 3_200, Seen::Absent), plain(3_300, 3_400, product(30))];
    assert_eq!(broken(&revived), [Rule::NeverBack]);
    // The product was deleted once, and the version after the deletion was read.
    commit(&mut revived, 40, false, Some((3_900, 4_000)));
    revived.reads = vec![plain(4_000, 4_100, product(40)), plain(4_200, 4_300, Seen::Absent)];
    assert_eq!(broken(&revived), [Rule::NeverBack]);

    disagreement();
}

/// A tier that disagrees with Postgres.
fn disagreement() {
    use checker::converge::agrees;
    use hotshelf::proto::{
        CachedCopy, ExplainProductResponse, MemoryCopy, PostgresRow, RedisCopy, SlotState,
    };
    let copy = |version| Some(CachedCopy { version, ..CachedCopy::default() });
    let explained = |memory: i64, state: SlotState, redis: i64| ExplainProductResponse {
        memory: Some(MemoryCopy {
            copy: copy(memory),
            state: state.into(),
            ..MemoryCopy::default()
        }),
        redis: Some(RedisCopy { reachable: true, copy: copy(redis), ..RedisCopy::default() }),
        postgres: Some(PostgresRow {
            reachable: true,
            exists: true,
            version: 2,
            ..PostgresRow::default()
        }),
        ..ExplainProductResponse::default()
    };
    let agreed = |explained, truth| agrees(&explained, truth, false);
    assert_eq!(agreed(explained(2, SlotState::Fresh, 2), Some(2)), Ok(()));
    assert_eq!(
        agreed(explained(1, SlotState::Invalidated, 2), Some(2)),
        Ok(()),
        "it is not served"
    );
    let mut restored = explained(2, SlotState::Fresh, 1);
    assert_eq!(agrees(&restored, Some(2), true), Ok(()), "Redis has gone back; it is not served");
    restored.redis.as_mut().unwrap().usable = true;
    assert!(agrees(&restored, Some(2), true).unwrap_err().starts_with("Redis"));
    let fault = |explained, truth| agreed(explained, truth).unwrap_err();
    assert!(fault(explained(1, SlotState::Fresh, 2), Some(2)).starts_with("memory"));
    assert!(fault(explained(2, SlotState::Fresh, 1), Some(2)).starts_with("Redis"));
    assert!(fault(explained(3, SlotState::Fresh, 3), Some(3)).starts_with("PostgreSQL"));
    assert!(fault(explained(2, SlotState::Fresh, 2), None).starts_with("memory"));
}

fn doubt() {
    // Deleted twice: an absence may be either deletion, and after the second it is not a step back to the first.
    let mut twice = history();
    commit(&mut twice, 30, true, Some((2_900, 3_000)));
    commit(&mut twice, 40, false, Some((3_900, 4_000)));
    commit(&mut twice, 40, true, Some((4_100, 4_200)));
    twice.reads = vec![
        plain(3_100, 3_200, Seen::Absent),
        plain(4_000, 4_050, product(40)),
        plain(4_150, 4_190, Seen::Absent),
        plain(4_300, 4_400, Seen::Absent),
    ];
    assert_eq!(broken(&twice), []);
    let stale = verify(&twice, BOUND).staleness.row(Since::Confirmed, Kind::Sql, None);
    assert_eq!(stale.max, 0, "nor is it stale");

    // A write that was reported as failed may have been committed, at any time.
    let mut unknown = history();
    commit(&mut unknown, 40, false, None);
    unknown.reads = vec![plain(3_000, 3_100, product(40))];
    assert_eq!(broken(&unknown), []);
    // Once a later version is confirmed, the unconfirmed one is committed too.
    commit(&mut unknown, 50, false, Some((4_900, 5_000)));
    unknown.reads = vec![read(5_001, 5_100, 0, ReadFreshness::Latest, product(40))];
    assert_eq!(broken(&unknown), [Rule::Latest]);
}

fn staleness() {
    let mut history = history();
    history.reads = vec![
        // Several reads of one change at one instance, two of them stale: one pair.
        plain(1_100, 1_150, product(10)),
        plain(1_300, 1_350, product(10)),
        plain(1_600, 1_650, product(20)),
        plain(1_700, 1_750, product(20)),
        // Not stale at the other instance.
        read(1_400, 1_450, 1, ReadFreshness::Plain, product(20)),
    ];
    let staleness = verify(&history, BOUND).staleness;
    let row = |since, tier| staleness.row(since, Kind::Sql, tier);
    let expected = Row { pairs: 2, stale: 1, p50: 0, p99: 300, p999: 300, max: 300 };
    assert_eq!(row(Since::Confirmed, None), expected);
    assert_eq!(row(Since::Confirmed, Some(Tier::Hot)), expected);
    assert_eq!(row(Since::Confirmed, Some(Tier::Redis)).stale, 0);
    assert_eq!(row(Since::Written, None).max, 350);
    assert_eq!(staleness.row(Since::Confirmed, Kind::Api, None).pairs, 0);
    let clock = Clock::start();
    assert!(clock.at_wall(0) == 0 && clock.now() < 1_000_000);
}
