-- KEYS: the key, its lease, and, on a single server, the sequence. ARGV: token, duration of a lease
-- (ms), how long before its end a value may be loaded again (ms).
-- Returns 'value' and the value; or 'lease', the sequence ('' without its name) and, before a
-- value's end, that value: the caller loads; or 'held': another reader loads.
local value = redis.call('GET', KEYS[1])
if value then
  local left = redis.call('PTTL', KEYS[1])
  if left < 0 or left >= tonumber(ARGV[3]) then
    return { 'value', value }
  end
end
-- A client that repeats a request without an answer finds its own token.
if not redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then
  local holder = redis.call('GET', KEYS[2])
  if holder ~= ARGV[1] then
    -- No lease is that long: the server's clock was set back.
    if redis.call('PTTL', KEYS[2]) > 360000 then
      redis.call('SET', KEYS[2], holder, 'XX', 'PX', ARGV[2])
    end
    return value and { 'value', value } or { 'held' }
  end
end
local since = KEYS[3] and (redis.call('GET', KEYS[3]) or '0') or ''
return { 'lease', since, value or nil }
