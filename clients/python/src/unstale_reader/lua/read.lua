-- Returns the text of a key that readers may write to. Returns nothing if the key is missing, and
-- '' if it has another type.
local function text_of(key)
  local held = redis.pcall('GET', key)
  if type(held) ~= 'table' then
    return held or nil
  end
  if not string.find(held.err, 'WRONGTYPE', 1, true) then
    error(held)
  end
  return ''
end

-- The sequence follows the clock in microseconds. A number from this one on (the year 2112) came
-- from another program, and doubles would soon be inexact.
local LAST_NUMBER = 4503599627370496

-- Returns the number of the sequence that a text holds, or nothing if another program wrote it.
local function number_of(text)
  local number = #text <= 16 and string.match(text, '^%d+$') and tonumber(text)
  return number and number < LAST_NUMBER and number or nil
end
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
