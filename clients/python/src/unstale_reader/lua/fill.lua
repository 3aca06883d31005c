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
-- Returns whether a tag was invalidated since the sequence was at `since`. A generation that is not
-- one of our numbers has replaced one, so it counts as an invalidation. It stays for as long as a
-- lease may last.
local function is_invalidated(generation, since)
  local held = text_of(generation)
  local number = held and number_of(held)
  if not held or (number and number <= (number_of(since) or 0)) then
    return false
  end
  local left = redis.call('PTTL', generation)
  if left == -1 or left > 3600000 then
    redis.call('PEXPIRE', generation, 360000)
  end
  return true
end
-- Adds a key to a tag's set, which must outlive its longest member: `unit` is PX (`millis` from
-- now), PXAT (at `millis`) or '' (for ever).
-- A set without a TTL belongs to an application, or has a permanent member: it stays without one.
-- Returns the error if Redis refuses.
local function tag_member(set, key, unit, millis)
  local before = redis.call('PTTL', set)
  local added = redis.pcall('SADD', set, key)
  if type(added) == 'table' and added.err then
    return added
  end
  local command = unit == 'PXAT' and 'PEXPIREAT' or 'PEXPIRE'
  if unit == '' then
    if before >= 0 then
      redis.call('PERSIST', set)
    end
  elseif before == -2 then
    redis.call(command, set, millis)
  elseif before >= 0 then
    redis.call(command, set, millis, 'GT')
  end
end

-- Sets a key with the lifetime of `unit` and `millis`.
local function set_value(key, value, unit, millis)
  if unit == '' then
    return redis.call('SET', key, value)
  end
  return redis.call('SET', key, value, unit, millis)
end
-- KEYS: the key, its lease, then each tag's set and its generation. ARGV: token, sequence at the
-- grant, value, unit, millis of the key, millis of the sets.
-- Returns 1, or 0 if the key or a tag was invalidated since the grant, or the lease ran out.
if text_of(KEYS[2]) ~= ARGV[1] then
  return 0
end
for i = 4, #KEYS, 2 do
  if is_invalidated(KEYS[i], ARGV[2]) then
    redis.call('UNLINK', KEYS[2])
    return 0
  end
end
for i = 3, #KEYS, 2 do
  local refused = tag_member(KEYS[i], KEYS[1], ARGV[4], ARGV[6])
  if refused then
    redis.call('UNLINK', KEYS[2])
    return refused
  end
end
set_value(KEYS[1], ARGV[3], ARGV[4], ARGV[5])
redis.call('UNLINK', KEYS[2])
return 1
