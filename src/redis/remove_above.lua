-- Removes an entry with a version that PostgreSQL has not assigned yet.
-- KEYS: entry. ARGV: the head of an entry of the newest assigned version.
local held = read(KEYS[1])
local keeps, same = newer_or_same(held, ARGV[1])
if keeps and not same then return redis.call('DEL', KEYS[1]) end
return 0
