-- Removes a value that could not be read, unless it was replaced meanwhile.
-- KEYS: entry. ARGV: the start of the value, its length.
local value = read(KEYS[1])
if not value then return redis.call('DEL', KEYS[1]) end
if #value ~= tonumber(ARGV[2]) or string.sub(value, 1, #ARGV[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
