-- The fleet's ranking of hot keys: exponentially decaying counts.
-- KEYS: ranking, time of the last decay in ms, hash of the instances that count.
-- ARGV: half-life in ms, members to keep, TTL in ms, the instance, the time in ms after which a silent instance is gone, then pairs of
-- count and product id.
-- Returns the number of instances.
-- The decay uses the clock of Redis, so that the clocks of instances need not agree.
-- A key of another type is deleted: otherwise every call would fail until an operator deletes it.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'zset' and kind ~= 'none' then redis.call('DEL', KEYS[1]) end
kind = redis.call('TYPE', KEYS[3]).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', KEYS[3]) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last = tonumber(redis.pcall('GET', KEYS[2]) or now) or now
if now > last then
    local factor = 0.5 ^ ((now - last) / tonumber(ARGV[1]))
    redis.call('ZUNIONSTORE', KEYS[1], 1, KEYS[1], 'WEIGHTS', factor)
end
for i = 6, #ARGV, 2 do redis.call('ZINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('SET', KEYS[2], math.max(now, last), 'PX', ARGV[3])
redis.call('HSET', KEYS[3], ARGV[4], now)
redis.call('PEXPIRE', KEYS[3], ARGV[3])
local instances = redis.call('HGETALL', KEYS[3])
local alive = 0
for i = 1, #instances, 2 do
    if now - (tonumber(instances[i + 1]) or 0) > tonumber(ARGV[5]) then
        redis.call('HDEL', KEYS[3], instances[i])
    else
        alive = alive + 1
    end
end
return alive
