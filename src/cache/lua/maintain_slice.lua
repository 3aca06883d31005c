-- KEYS: a tag's set, its four sets of members set aside, the list of sets with such members.
-- ARGV: the cursor, about how many members, whether to set aside (1) or only to count (0), how long
-- one of the four sets is filled (ms).
-- A member whose key is gone is set aside and still belongs to the tag: its key may be about to be
-- set. A member with a lease keeps its place, since a reader is filling it. So does a member that
-- we may not ask about.
-- Returns the next cursor, how many members were visited, and how many of them had no key.
local members, cursor = some_members(KEYS[1], ARGV[1], 1, tonumber(ARGV[2]), SLICE_BYTES)
local gone = {}
for _, member in ipairs(members) do
  if redis.pcall('EXISTS', member) == 0 and redis.pcall('EXISTS', side_key('lease', member)) == 0 then
    gone[#gone + 1] = member
  end
end
if ARGV[3] == '1' and #gone > 0 then
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local aside = KEYS[2 + math.floor(now / tonumber(ARGV[4])) % 4]
  local lasts, before = redis.call('PTTL', KEYS[1]), redis.call('PTTL', aside)
  -- A member is in one of the sets at any step, also if Redis refuses the next one.
  redis.call('SADD', KEYS[6], KEYS[1])
  for first = 1, #gone, 1000 do
    redis.call('SADD', aside, unpack(gone, first, math.min(first + 999, #gone)))
  end
  if lasts == -1 then
    redis.call('PERSIST', aside)
  elseif before ~= -1 then
    redis.call('PEXPIRE', aside, math.max(lasts, before, 3600000))
  end
  for first = 1, #gone, 1000 do
    redis.call('SREM', KEYS[1], unpack(gone, first, math.min(first + 999, #gone)))
  end
end
return { cursor, #members, #gone }
