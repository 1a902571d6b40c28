-- The head of an entry: format, flags, version (8 bytes, big endian); see entry_bytes.rs.
-- Versions are compared as two halves, because Lua numbers are exact only up to 2^53.
local function read(key)
    local value = redis.pcall('GET', key)
    -- A key of another type counts as an unreadable value.
    if type(value) == 'table' then return '' end
    return value
end

-- Whether `held` is at least as new as `offered`, and whether the two are the same revision.
local function newer_or_same(held, offered)
    if not held or #held < 30 or string.byte(held) ~= 1 then return false, false end
    local held_flags, held_high, held_low = struct.unpack('>BI4I4', held, 2)
    local flags, high, low = struct.unpack('>BI4I4', offered, 2)
    if held_high ~= high then return held_high > high, false end
    if held_low ~= low then return held_low > low, false end
    if held_flags ~= flags then return held_flags > flags, false end
    return true, true
end

