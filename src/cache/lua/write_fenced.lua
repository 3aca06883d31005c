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

-- Ends a write that Redis refuses. Without its value the old one must not stay readable. A retry of
-- this event may still write: the lowered fence only keeps out older ones.
local function refuse(err)
  redis.pcall('UNLINK', KEYS[1])
  local version, place = string.match(ARGV[5], '^(.*:)(%d+)$')
  if order == NEWER and place then
    redis.call('SET', KEYS[2], version .. (tonumber(place) - 1), 'PX', ARGV[6])
  end
  return caught(err)
end

if order == TIED or ARGV[2] == 'OVER' then
  -- If two events have the same version, it is unknown which is newer.
  local refused = refusal(redis.pcall('UNLINK', KEYS[1]))
  return refused and refuse(refused) or existed
end
-- A value that no tag can invalidate is worse than none.
for i = 3, #KEYS do
  local done, refused = pcall(tag_member, KEYS[i], KEYS[1], ARGV[2], ARGV[4])
  if refused or not done then
    return refuse(refused)
  end
end
local done, refused = pcall(set_value, KEYS[1], ARGV[1], ARGV[2], ARGV[3])
if not done then
  return refuse(refused)
end
return existed
