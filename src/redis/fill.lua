-- Stores what was loaded under a lease, and gives the lease back.
-- KEYS: entry, lock. ARGV: token, entry, TTL of the entry in ms.
-- Returns {'stored'}, or {'lost' | 'older', what Redis holds}.
-- A broken lease means that something was committed since the load began, so what it read may be old,
-- even when the newer entry is no longer here to compare with.
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
