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
  local holder = text_of(KEYS[2]) or ''
  if holder ~= ARGV[1] then
    -- No lease is that long, or lacks a TTL: the server's clock was set back, or another program
    -- wrote it.
    local left = redis.call('PTTL', KEYS[2])
    if left == -1 or left > 360000 then
      redis.call('SET', KEYS[2], holder, 'XX', 'PX', ARGV[2])
    end
    return value and { 'value', value } or { 'held' }
  end
end
-- A fill with 0 is refused if one of its tags has a generation.
local since = KEYS[3] and text_of(KEYS[3]) or ''
if KEYS[3] and not number_of(since) then
  since = '0'
end
return { 'lease', since, value or nil }
