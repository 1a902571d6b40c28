-- Breaks the lease of a product that changed, and says whether Redis holds an entry that is older.
-- KEYS: entry, and lock unless it is broken already. ARGV: the head of an entry of the new revision.
if KEYS[2] then redis.call('DEL', KEYS[2]) end
local held = read(KEYS[1])
if not held then return 0 end
return newer_or_same(held, ARGV[1]) and 0 or 1
