-- Stores the result of a load under its lease, and releases the lease.
-- KEYS: entry, lock. ARGV: token, entry, TTL of the entry in ms.
-- Returns {'stored'}, or {'lost' | 'older', the entry in Redis}.
-- A broken lease means that a change was committed after the load began, so its result may be old, even when the newer
-- entry has been evicted and cannot be compared with. 'stored' for an equal entry makes a repeated command idempotent.
local held = read(KEYS[1])
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
    if held == ARGV[2] then return {'stored'} end
    return {'lost', held}
end
redis.call('DEL', KEYS[2])
local keeps, same = newer_or_same(held, ARGV[2])
if keeps and not same then return {'older', held} end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return {'stored'}
