-- Replaces an entry by a committed one, unless Redis holds a newer one. An equal revision is stored again, because its
-- known_at is later.
-- KEYS: entry, and lock to break the lease. ARGV: entry, TTL in ms.
-- It never inserts: a newer entry may have been stored and evicted while the writer was delayed after its commit, and an
-- absent key does not show that. Only a fill may insert, because its lease proves that no write came between.
if KEYS[2] then redis.call('DEL', KEYS[2]) end
local held = read(KEYS[1])
if not held then return 0 end
local keeps, same = newer_or_same(held, ARGV[1])
if keeps and not same then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
