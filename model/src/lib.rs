//! A model of how hotshelf keeps its copies coherent, and a checker that tries everything that can happen in
//! it, in every order, up to the bounds of a scenario.
//!
//! The races of this protocol are between three tiers, two instances and the relay, and the worst of
//! them need a dozen steps in one order of millions. A test of the real thing can hold such an order once it is known; here
//! it is found.
//!
//! `cargo test -p hotshelf-model -- --nocapture` prints how many states were tried, and the shortest
//! counterexample for each protection that is turned off. `-- --ignored` tries more, for minutes.
//!
//! # What is modelled
//! One product; two instances, each with its memory, its recent changes, a poll, a load and a write through the API under way;
//! the relay; Postgres with its transactions, the outbox, the markers and the epoch; Redis with the entry, the lease and the
//! key of its replication id, and a replica that may have stopped following it. `tests/names.rs` checks that the names of the last column
//! occur in the program.
//!
//! | action | what happens | where |
//! |---|---|---|
//! | `Begin`, `Update`, `Delete`, `Insert` | an xid, and the version and the outbox row of a statement | `0001_products.sql`, `products.rs` |
//! | `Commit`, `Rollback` | the row becomes visible, or never | `0001_products.sql` |
//! | `Poll` | the moment is noted, and the statement sent | `poll_is_sent`, `change_feed.rs` |
//! | `Snapshot` | Postgres takes the snapshot, and reads markers, epoch and rows | `changes.rs`, `snapshot.rs` |
//! | `Answer` | the answer arrives: floors, gap, proof, what was pruned is forgotten | `has_missed`, `apply`, `prove`, `drop_pruned` |
//! | `Overflow` | the same with more changes than fit | `overflow` |
//! | `RaiseEpoch` | an instance finds another timeline | `raise_epoch` |
//! | `Hint`, `BogusHint` | a change is heard of: early, late, again, never, or wrongly | `take_hints`, `hear` |
//! | `BeginLoad` | a read that memory could not answer, or a refresh | `begin_load`, `floor_since` |
//! | `ReadRedis` | `GET` | `look_into_redis` |
//! | `TryLease` | one attempt for the lease | `load_under_leases`, `try_lease.lua` |
//! | `Select`, `Fill` | under the lease | `load_and_fill`, `fill.lua` |
//! | `SelectWithoutLease`, `Replace` | waited out, impatient, or without Redis | `load_without_lease`, `publish.lua` |
//! | `Finish` | the result is judged, and kept or loaded again | `finish`, `is_current`, `covers`, `trusted_since` |
//! | `Offer`, `Publish` | a write after its commit: to its own memory, to Redis | `offer`, `publish`, `publish.lua` |
//! | `TakeRelayLease`, `StopRelay` | the relay changes hands, while the old one may still act | `hold_relay` |
//! | `RelayPoll` | reads the outbox after its cursor, and leaves a mark | `relay_on`, `mark` |
//! | `RelaySupersede`, `RelayLoad`, `RelayReplace` | replaces what Redis holds and is older | `supersede.lua`, `load`, `replace` |
//! | `RelayDelete` | deletes it: a bulk job, or what cannot be decoded | `remove` |
//! | `RelayAdvance`, `Prune` | stores how far Redis reflects Postgres; rows are deleted | `advance`, `prune_outbox` |
//! | `Probe` | reads the replication id and the key of it on a new connection | `probe`, `compare`, `replication.lua` |
//! | `RedisFails` | a command fails, and was not executed | |
//! | `EvictEntry`, `EvictSlot` | memory is short, or a hard TTL passes | |
//! | `ExpireLease` | the TTL of the lease passes, whatever its holder does | |
//! | `Crash` | kill -9 between any two actions, and a new start: memory is gone, both leases stay | |
//! | `ReplicaStalls`, `Failover` | from some moment the replica hears nothing more; later it is the primary. A restart from an old snapshot is the same | |
//! | `Backup`, `Restore` | Postgres goes back, on another timeline | |
//!
//! A node that does not answer is a `RelaySupersede` that does not happen yet: polls, marks and all else go on.
//!
//! # What must hold
//! [`promises`](protocol::promises): neither Redis nor memory goes back while it holds the product (P2; but for the
//! failover itself); nothing is held that was never committed; a copy that claims a version, and so answers a
//! `min_version`, is not older than that write (P4). Memory that is trusted holds nothing older than what was acknowledged before its
//! proof, nor than what this instance has written or heard of; and what Redis held is not taken for current when it is older
//! than what was proven when the load began (P3, where the bound is how old a proof may be). Once nothing more happens by itself,
//! every copy that may be served is what Postgres holds, without the help of a TTL, and no floor is above it. From every state such
//! an end can be reached, so every fair continuation reaches one.
//!
//! An entry knows which commit it really shows, beside the revision that the protocol sees; "older" means
//! the former, so a label that is wrong is found out.
//!
//! # What is left out
//! - Time. What a timeout decides may happen at any moment or be put off: rows are pruned however young, a lease is lost however
//!   short. An entry counts as known recently when no later change has been pruned, which is the most that `change_retention` allows. The age up to
//!   which a copy is trusted without a proof is not here, nor is the hard TTL after which the relay gives up a silent node.
//! - Other products: a transaction that changes one has an xid and a row, no more. TRUNCATE, batches, several nodes (pending per node
//!   is one node's), corrupt bytes, versions above the ceiling, `redis_epoch`.
//! - A Postgres that fails (a poll or a load is put off then), one that goes back on the same timeline, and the comparison of marks that finds
//!   it out. Commands that Redis executes after their caller has given up, or twice.
//! - A primary of Redis that goes on after its replica was promoted. What was relayed to it alone is lost, and not suspect.
//! - Marks but the newest. Two loads at a time in one instance. Only the newest generation is kept: it is dropped no earlier than older ones.
//! - What is written for an epoch that is over, once something was written for the next: nothing proven reads it.
//! - With `feeds` = 1 the other instance loads, writes and relays, and is proven current of nothing.
//!
//! The bounds are those of [`Scenario`](scenarios::Scenario). The instances are alike, so of two states that differ
//! in their names one is tried.
//!
//! # What the checker found
//! Before these were in the protocol: the floor of its begin for a load that reads Redis (`floor_of_begin`), the age of suspect entries
//! judged when they are read (`suspects_age`), since when in the key of the node (`key_says_since`), markers that never go back (`markers_grow`) and
//! belong to an epoch (`markers_of_epoch`), the ordinal for own writes (`write_ordinal`) and for the end of an overflow
//! (`overflow_ends_with_ordinal`), a scope that is taken when something begins (`scope_of_begin`), and a first poll that voids when it arrives
//! (`first_poll_voids`). From the protocol before this one: writes only replace (`writes_only_replace`), and a tombstone has the version
//! that was deleted. `tests/controls.rs` says what happens without each.

pub mod checker;
mod fold_hasher;
pub mod protections;
pub mod protocol;
pub mod scenarios;
pub mod snapshot;
pub mod state;
