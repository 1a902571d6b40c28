-- Replaces an entry by what is known to be committed, unless it is newer. The same revision is stored again,
-- because it is now known to have been current for longer.
-- KEYS: entry, and lock to break the lease. ARGV: entry, TTL in ms.
-- It does not populate: nothing here tells whether something newer was in an empty place and is gone, as it may
-- be when the writer was held up after its commit. Only a fill knows, by its lease.
if KEYS[2] then redis.call('DEL', KEYS[2]) end
local held = read(KEYS[1])
if not held then return 0 end
local keeps, same = newer_or_same(held, ARGV[1])
if keeps and not same then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
