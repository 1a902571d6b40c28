-- Appends changes to the change stream, numbered, so that whoever follows it can tell when some are missing.
-- KEYS: stream, number of the last entry. ARGV: about how many entries are kept, the changes.
local number = redis.call('INCR', KEYS[2])
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'n', number, 'c', ARGV[2])
