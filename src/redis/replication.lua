-- Stores the node's replication id and the time since which its entries are complete, unless the key has this id already.
-- KEYS: replication key. ARGV: replication id, since in Unix ms, TTL of the key in ms.
-- Returns {1 if stored, else 0; the value of the key}.
local held = redis.pcall('GET', KEYS[1])
local id = ARGV[1] .. ' '
if type(held) == 'string' and string.sub(held, 1, #id) == id then return {0, held} end
redis.call('SET', KEYS[1], id .. ARGV[2], 'PX', ARGV[3])
return {1, id .. ARGV[2]}
