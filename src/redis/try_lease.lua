-- Takes the lease of a product unless another token holds it, and reads the entry again.
-- KEYS: entry, lock. ARGV: token, TTL of the lease in ms. Returns {1 if this token holds the lease, else 0; entry}.
-- Idempotent: a command repeated after a reconnection finds its own token and returns the same.
-- hotshelf never writes a lock without a TTL. Such a key would block the lease until an operator deletes it, so it is deleted.
if redis.call('PTTL', KEYS[2]) == -1 then redis.call('DEL', KEYS[2]) end
local taken = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2])
local mine = taken or redis.call('GET', KEYS[2]) == ARGV[1]
return {mine and 1 or 0, read(KEYS[1])}
