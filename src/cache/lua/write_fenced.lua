-- KEYS: the key, its fence, then its tags' sets. ARGV: value, unit, millis of the key, millis of
-- the sets, version, lifetime of the fence (ms), 1 if its tags' sets are elsewhere.
-- The unit OVER means a value that has expired already. Returns whether the key existed.
local existed = redis.call('EXISTS', KEYS[1])
local order = raise_fence(KEYS[2], ARGV[5], ARGV[6])
if order == OLD then
  if ARGV[7] == '1' and redis.call('GET', KEYS[2]) == ARGV[5] then
    -- An earlier try may have stopped before the key joined its sets: an invalidation in between
    -- did not find it.
    redis.call('UNLINK', KEYS[1])
  end
  return existed
end
if order == TIED or ARGV[2] == 'OVER' then
  -- If two events have the same version, it is unknown which is newer.
  redis.call('UNLINK', KEYS[1])
  return existed
end
for i = 3, #KEYS do
  local refused = tag_member(KEYS[i], KEYS[1], ARGV[2], ARGV[4])
  if refused then
    -- A value that no tag can invalidate is worse than none. A retry of this event may still write:
    -- the fence only keeps out older ones.
    redis.call('UNLINK', KEYS[1])
    local version, place = string.match(ARGV[5], '^(.*:)(%d+)$')
    redis.call('SET', KEYS[2], version .. (tonumber(place) - 1), 'PX', ARGV[6])
    return refused
  end
end
set_value(KEYS[1], ARGV[1], ARGV[2], ARGV[3])
return existed
