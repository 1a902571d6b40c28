-- The histories of Redis servers that the caches were filled from, and since when each is known here. Redis gives
-- its data another history when it restarts and when a replica takes over: what was stored before may then be
-- older than what was there once, because the last writes, or all since a snapshot, are gone.
CREATE TABLE redis_histories (
    id          text        PRIMARY KEY,
    seen_time   timestamptz NOT NULL DEFAULT clock_timestamp()
);
