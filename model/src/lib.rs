//! A model of hotshelf's coherence protocol, and a checker that tries every interleaving of its steps, up to the bounds of a
//! scenario.
//!
//! The races of this protocol are between three tiers, two instances and the relay. The worst need a dozen steps in one order
//! of millions. A test of the program can reproduce such an order once it is known; the checker finds it.
//!
//! `cargo test -p hotshelf-model -- --nocapture` prints the number of states, and the shortest counterexample without each
//! protection. `-- --ignored` checks larger scenarios, for minutes.
//!
//! # What is modelled
//! One product; two instances, each with its memory, its recent changes, and at most one poll, one load and one write through
//! the API in progress; the relay; Postgres with its transactions, the outbox, the markers and the epoch; Redis with the
//! entry, the lease and the key with its replication id, and a replica that may have stopped replicating. `tests/names.rs`
//! checks that the names in the last column exist in the program.
//!
//! | action | what happens | where |
//! |---|---|---|
//! | `Begin`, `Update`, `Delete`, `Insert` | an xid, and the version and the outbox row of a statement | `0001_hotshelf.sql`, `products.rs` |
//! | `Commit`, `Rollback` | the row becomes visible, or never | `0001_hotshelf.sql` |
//! | `Poll` | the instance notes the time, and sends the statement | `poll_is_sent`, `change_feed.rs` |
//! | `Snapshot` | Postgres takes the snapshot, and reads markers, epoch and rows | `changes.rs`, `snapshot.rs` |
//! | `Answer` | the response arrives: floors, gap, proof; pruned changes are dropped | `has_missed`, `apply`, `prove`, `drop_pruned` |
//! | `Overflow` | the same with more changes than `RecentChanges` holds | `overflow` |
//! | `RaiseEpoch` | an instance finds Postgres on another timeline | `raise_epoch` |
//! | `Hint`, `BogusHint` | a hint of a change arrives: early, late, twice, or of no version that exists | `receive_hints`, `observe` |
//! | `BeginLoad` | a read that memory could not answer, or a refresh | `begin_load`, `floor_since` |
//! | `ReadRedis` | `GET` | `read_redis` |
//! | `TryLease` | one attempt for the lease | `load_under_leases`, `try_lease.lua` |
//! | `Select`, `Fill` | under the lease | `load_and_fill`, `fill.lua` |
//! | `SelectWithoutLease`, `Replace` | after waiting for the lease in vain, or without Redis | `load_without_lease`, `publish.lua` |
//! | `Finish` | memory keeps the result, or it is loaded again | `finish`, `is_confirmed`, `covers`, `trusted_since` |
//! | `Offer`, `Publish` | a write after its commit: to the memory of the instance, then to Redis | `offer`, `publish`, `publish.lua` |
//! | `TakeRelayLease`, `StopRelay` | the relay lease changes its holder, while the former one may still act | `hold_relay` |
//! | `RelayPoll` | the relay reads the outbox after its cursor, and stores a mark | `relay_on`, `mark` |
//! | `RelaySupersede`, `RelayLoad`, `RelayReplace` | the relay replaces an older entry in Redis | `supersede.lua`, `load`, `replace` |
//! | `RelayDelete` | the relay deletes the entry, after a bulk job or because it cannot be decoded | `remove` |
//! | `RelayAdvance`, `Prune` | the relay stores how far Redis reflects Postgres, and deletes rows | `advance`, `prune_outbox` |
//! | `Probe` | a new connection reads the replication id, and the key with the stored one | `probe`, `compare`, `replication.lua` |
//! | `RedisFails` | a command fails without being executed | |
//! | `EvictEntry`, `EvictSlot` | a copy is evicted, or its hard TTL passes | |
//! | `ExpireLease` | the TTL of the lease passes, while its holder may still act | |
//! | `Crash` | kill -9 between any two actions, and a restart: memory is empty, both leases stay | |
//! | `ReplicaStalls`, `Failover` | the replica stops replicating, and later becomes primary; or Redis restarts from an old snapshot | |
//! | `Backup`, `Restore` | Postgres is restored to an earlier state, on another timeline | |
//!
//! While a node does not answer, `RelaySupersede` does not happen: polls, marks and all else go on.
//!
//! # What must hold
//! See [`promises`](protocol::promises).
//! - P2: neither Redis nor memory goes back to an older version while it holds the product, except in the failover itself.
//!   No tier holds what was never committed.
//! - P4: a copy with a version, which therefore satisfies a `min_version`, is not older than that write.
//! - P3, where the bound is the age of a proof: trusted memory is not older than the commits acknowledged before its proof,
//!   nor than what this instance has written or observed. A load does not accept an entry of Redis as current if it is older
//!   than what was proven when the load began.
//! - In a quiescent state every copy that may be served equals Postgres, without the help of a TTL, and no floor is above
//!   it. A quiescent state can be reached from every state, so every fair execution reaches one.
//!
//! Besides the revision, which the protocol uses, an entry has the commit that it really shows. "Older" refers to the commit,
//! so that a wrong revision is detected.
//!
//! # What is left out
//! - Time. What depends on a timeout may happen at any moment, or be postponed: rows may be pruned at any age, and a lease may
//!   expire at any age. An entry counts as recently known if no later change has been pruned, which is the most that
//!   `change_retention` allows. Left out are the age up to which a copy is trusted without a proof, and the hard TTL after
//!   which the relay gives up a node that does not answer.
//! - Other products: a transaction that changes one has only an xid and a row. TRUNCATE, batches, several Redis nodes,
//!   corrupt bytes, versions above the ceiling, `redis_epoch`.
//! - Failures of Postgres (they postpone a poll or a load), a Postgres that goes back on the same timeline, and the
//!   comparison of marks that detects it. Commands that Redis executes twice, or after their caller has given up.
//! - A Redis primary that still acts after its replica was promoted. What was relayed only to it is lost, and not suspect.
//! - Marks other than the newest. Two loads at a time in one instance. Generations other than the newest: older ones are
//!   dropped no later.
//! - Writes for an epoch that is over, after the first write for the next one: no proven copy depends on them.
//! - With `feeds` = 1 the other instance loads, writes and relays, but is never proven current.
//!
//! The bounds are those of [`Scenario`](scenarios::Scenario). The instances are symmetric, so of two states that differ only
//! by their exchange one is visited.
//!
//! # What the checker found
//! The protocol has these protections because the checker found a counterexample without them: `floor_of_begin` (for a load
//! that reads Redis), `suspects_age` (judged when an entry is read), `key_has_since`, `markers_grow`, `markers_of_epoch`,
//! `write_ordinal`, `overflow_ends_with_ordinal`, `scope_of_begin`, `first_poll_invalidates`, `writes_only_replace`; and a
//! tombstone has the version that was deleted. `tests/controls.rs` has the counterexamples.

pub mod checker;
mod fold_hasher;
pub mod protections;
pub mod protocol;
pub mod scenarios;
pub mod snapshot;
pub mod state;
