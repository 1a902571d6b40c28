-- Takes the lease of a product, unless somebody else holds it, and looks once more at the entry.
-- KEYS: entry, lock. ARGV: token, TTL of the lease in ms. Returns {1 when we hold the lease, entry}.
-- Sent again after a reconnect it finds its own token, and says what it said before.
-- What has no TTL is no lease of ours, and would never go away.
if redis.call('PTTL', KEYS[2]) == -1 then redis.call('DEL', KEYS[2]) end
local taken = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2])
local mine = taken or redis.call('GET', KEYS[2]) == ARGV[1]
return {mine and 1 or 0, read(KEYS[1])}
