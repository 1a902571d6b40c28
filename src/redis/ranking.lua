-- The fleet's ranking of hot keys: exponentially decaying counts.
-- KEYS: ranking, time of the last decay in ms.
-- ARGV: half-life in ms, members to keep, TTL in ms, then pairs of count and product id.
-- The decay uses the clock of Redis, so that the clocks of instances need not agree.
-- A key of another type is deleted: otherwise every call would fail until an operator deletes it.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'zset' and kind ~= 'none' then redis.call('DEL', KEYS[1]) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last = tonumber(redis.pcall('GET', KEYS[2]) or now) or now
if now > last then
    local factor = 0.5 ^ ((now - last) / tonumber(ARGV[1]))
    redis.call('ZUNIONSTORE', KEYS[1], 1, KEYS[1], 'WEIGHTS', factor)
end
for i = 4, #ARGV, 2 do redis.call('ZINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('SET', KEYS[2], math.max(now, last), 'PX', ARGV[3])
return redis.status_reply('OK')
