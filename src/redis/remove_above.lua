-- Removes an entry that claims a version above all that PostgreSQL has given out.
-- KEYS: entry. ARGV: the head of an entry of the newest version that was given out.
local held = read(KEYS[1])
local keeps, same = newer_or_same(held, ARGV[1])
if keeps and not same then return redis.call('DEL', KEYS[1]) end
return 0
