-- Removes an unreadable value, unless it was replaced since the caller read it.
-- KEYS: entry. ARGV: the first bytes of the value, its length.
local value = read(KEYS[1])
if not value then return redis.call('DEL', KEYS[1]) end
if #value ~= tonumber(ARGV[2]) or string.sub(value, 1, #ARGV[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
