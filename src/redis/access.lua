-- Fails unless this user may write here. KEYS: a key that holds nothing.
redis.call('SET', KEYS[1], '', 'PX', 1000)
return redis.call('DEL', KEYS[1])
