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
