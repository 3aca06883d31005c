-- KEYS: the key, its fence, then its tags' sets. ARGV: value, unit, millis of the key, millis of the sets, mark, how long the fence is kept (ms),
-- whether its tags' sets are elsewhere (1).
-- The unit OVER stands for a value that has expired already. Returns whether the key was there.
local existed = redis.call('EXISTS', KEYS[1])
local standing = raise_fence(KEYS[2], ARGV[5], ARGV[6])
if standing == OLD then
  if ARGV[7] == '1' and redis.call('GET', KEYS[2]) == ARGV[5] then
    -- Tried before, and maybe cut short before the key was surely in its sets: an invalidation of a tag that came then did not find it.
    redis.call('UNLINK', KEYS[1])
  end
  return existed
end
if standing == TIED or ARGV[2] == 'OVER' then
  -- Of two events of the same version nobody knows which is newer.
  redis.call('UNLINK', KEYS[1])
  return existed
end
for i = 3, #KEYS do
  local refused = tag_member(KEYS[i], KEYS[1], ARGV[2], ARGV[4])
  if refused then
    -- A value that no tag can invalidate is worse than none. Tried again, this event may still write: the fence keeps out what is older.
    redis.call('UNLINK', KEYS[1])
    local version, place = string.match(ARGV[5], '^(.*:)(%d+)$')
    redis.call('SET', KEYS[2], version .. (tonumber(place) - 1), 'PX', ARGV[6])
    return refused
  end
end
set_value(KEYS[1], ARGV[1], ARGV[2], ARGV[3])
return existed
