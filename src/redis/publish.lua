-- Stores what is known to be committed, unless Redis holds something newer. The same revision is stored
-- again, because it is now known to have been current for longer.
-- KEYS: entry, lock. ARGV: entry, TTL in ms, 1 to break the lease, 1 to store even when nothing is held.
-- Without a lease to tell that nothing newer was here and is gone, only the writer itself may store into
-- an empty place; what was merely read may replace, no more.
if ARGV[3] == '1' then redis.call('DEL', KEYS[2]) end
local held = read(KEYS[1])
if not held and ARGV[4] ~= '1' then return 0 end
local keeps, same = newer_or_same(held, ARGV[1])
if keeps and not same then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
