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
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
for i = 4, #KEYS, 2 do
  local generation = redis.call('GET', KEYS[i])
  if generation and tonumber(generation) > tonumber(ARGV[2]) then
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
