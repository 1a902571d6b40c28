//! A model of how hotshelf keeps its copies coherent, and a checker that tries everything that can happen in
//! it, in every order, up to the bounds of a scenario.
//!
//! The races of this protocol are between three tiers, two instances, the relay and a stream, and the worst of
//! them need four things to happen in one order of thousands. Tests of the real thing can hold such an
//! order once somebody has thought of it; here nobody has to. What is found here is an interleaving to be held in a
//! test of the real thing.
//!
//! `cargo test -p hotshelf-model -- --nocapture` prints how many states were tried, and the shortest
//! counterexample for each protection that is turned off. `-- --ignored` tries more, for minutes.
//!
//! # What is modelled
//! One product; two instances, each with its memory, one load in flight, one write through the API, its relay and
//! its place in the change stream; Postgres, its outbox and what was relayed; Redis with the entry, the lease and
//! the stream, and a replica that may have stopped following it.
//!
//! | action | stands for |
//! |---|---|
//! | `Update`, `Delete`, `Insert` | the commit of a statement and its triggers: `migrations/0001_products.sql`, `postgres/products.rs` |
//! | `Offer`, `Publish`, `Append` | `Catalog::publish` (`catalog/write.rs`): `HotCache::offer`, `publish.lua`, `append.lua` |
//! | `BeginLoad` | `Catalog::begin`, `HotCache::begin_load`: a read that memory could not answer, or a refresh |
//! | `ReadRedis` | `Catalog::land_from_redis` |
//! | `TryLease` | one attempt of `Catalog::load_under_leases`: `try_lease.lua` |
//! | `Select`, `Fill` | `Catalog::load_and_fill`: `read_postgres`; `fill.lua` and `land_filled` |
//! | `SelectWithoutLease`, `Replace` | `Catalog::load_without_lease`: waited out, impatient, or without Redis; `publish.lua` |
//! | `Land` | `Catalog::land`: `LoadTicket::finish`, `HotCache::keep` |
//! | `RelayClaim`, `RelayDone` | `Postgres::claim_changes`, `Claim::done` (`postgres/outbox.rs`) |
//! | `RelaySupersede`, `RelayLoad`, `RelayReplace`, `RelayAppend` | `Relay::step`: `supersede.lua`, `Claim::load`, `publish.lua`, `append.lua` |
//! | `Hear`, `FindGap`, `Restart` | `Follower::poll` and `restart` (`redis/changes.rs`), `HotCache::invalidate` and `void_before` |
//! | `Replay` | `Catalog::replay` (`catalog/invalidation.rs`), `Postgres::replay_changes` |
//! | `Look` | `OutboxWatch::relayed_until` (`postgres/outbox.rs`): what was committed before the oldest row of the outbox is relayed |
//! | `Poll`, `Prove` | `Catalog::follow`: Redis finds nothing behind the cursor; the answer comes, and `HotCache::prove` hears of it |
//! | `RedisFails` | a command that fails and was not executed |
//! | `EvictEntry`, `EvictSlot` | memory is short, or a hard TTL passes |
//! | `ExpireLease` | the TTL of the lease passes, whatever its holder does |
//! | `Crash` | kill -9 between any two actions, and a new start: memory is gone, open transactions roll back, the lease stays |
//! | `ReplicaStalls`, `Failover` | from some moment the replica hears nothing more; later it is the primary |
//! | `Trim` | so many changes of other products are appended that older entries are gone |
//!
//! # What must hold
//! [`promises`](protocol::promises): neither Redis nor memory goes back while it holds the product (P2; but for the
//! failover itself); nothing is held that was never committed; a copy that claims a version, and so answers a
//! `min_version`, is not older than that write (P4); and once nothing more happens by itself, Redis and
//! every memory that may be served hold what Postgres holds, without the help of a TTL (P3). From every
//! state such an end can be reached, so every fair continuation reaches one.
//!
//! P3's bound has no time here, but what it rests on: an instance that knows what has been relayed, and then heard
//! the stream to its end, has nothing older in a memory that is trusted; and Redis holds nothing older than what
//! anybody knows to be relayed. How old that knowledge may be is the program's affair (`max_staleness`). Both are checked
//! without a failover, which loses what was relayed. The program then takes nothing from Redis that was last known to be
//! current long before the failover, until the changes of that time are relayed again (`Catalog::probe_redis`): that
//! is about `known_at`, which is not here.
//!
//! An entry knows which commit it really shows, beside the revision that the protocol sees; "older" means
//! the former, so a label that is wrong is found out.
//!
//! # What is left out
//! - Time. What a timeout decides may happen at any moment or be put off; the soft TTL, which would heal what
//!   is old in the end, never passes; the hot lease (`HotCache::trusts` by age) is not there, so nothing is
//!   said about how long convergence takes.
//! - Other products, batches, corrupt bytes, a Postgres that fails (a load just ends then), commands that Redis
//!   executes after their caller has given up, or twice.
//! - `known_at`: whether a copy is fresh enough for the caller is anybody's guess, both ways. One read that joins a
//!   flight and boards the next is two loads.
//! - `read_postgres` takes the floors and the rows in one step; `CreateProduct` is an insert by SQL, since
//!   nobody has heard of its id before.
//! - What is replayed counts as if it had never been relayed; the program takes its new row for a new change. That makes no
//!   difference unless it was lost, for which see above.
//! - Only one of the instances looks how far changes have been relayed: what it knows concerns nobody else.
//! - In Redis Cluster the product and the stream fail over apart; here they do so together.
//!
//! The bounds are those of [`Scenario`](scenarios::Scenario). The instances are alike, so of two states that differ
//! in their names one is tried; what everybody has heard of the stream is forgotten, and numbers count from there.
//!
//! # What the checker found
//! Five protections are here, and now in the code, because the checker asked for them: writes only replace
//! (`writes_only_replace`, `write_floor`: in the code a write populates memory no more than Redis, so that no floor is
//! needed), a follower trusts only what was read after it had found its place (`void_after_restart`), tombstones carry
//! the version that was deleted (`exact_tombstones`, the table `deleted_products`), and an instance that starts has
//! recent changes relayed again (`replay_at_start`). Each has a test in `tests/controls.rs` that says what happens
//! without it. `replay_after_relay` is `REPLAY_PAUSE` in the code, and `clock_goes_on` is an assumption about the
//! servers' clocks.

pub mod checker;
mod fold_hasher;
pub mod protections;
pub mod protocol;
pub mod scenarios;
pub mod state;
pub mod stream;
