-- Breaks the lease of a changed product. Returns 1 if Redis holds an older entry, else 0.
-- KEYS: entry, and lock unless it was deleted before. ARGV: the head of an entry of the new revision.
if KEYS[2] then redis.call('DEL', KEYS[2]) end
local held = read(KEYS[1])
if not held then return 0 end
return newer_or_same(held, ARGV[1]) and 0 or 1
