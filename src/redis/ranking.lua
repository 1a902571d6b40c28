-- The fleet's ranking of hot keys: exponentially decaying counts.
-- KEYS: ranking, time of the last decay in ms.
-- ARGV: half-life in ms, how many members are kept, TTL in ms, then pairs of count and product id.
-- Redis' own clock, so that instances with clocks of their own agree.
-- Somebody else's bytes under our key would be an error for ever.
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
