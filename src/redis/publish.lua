-- Stores what is known to be committed, unless Redis holds something newer. The same revision is stored
-- again, because it is now known to have been current for longer.
-- KEYS: entry, lock. ARGV: entry, TTL in ms, 1 to break the lease, 1 to store even when nothing is held.
-- Nothing here tells whether something newer was in an empty place and is gone. Only a writer that has just
-- committed may store there; what was merely read, or written a while ago, may replace, no more.
if ARGV[3] == '1' then redis.call('DEL', KEYS[2]) end
local held = read(KEYS[1])
if not held and ARGV[4] ~= '1' then return 0 end
local keeps, same = newer_or_same(held, ARGV[1])
if keeps and not same then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
