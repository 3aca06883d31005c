-- KEYS: a tag's set. ARGV: the cursor, about how many members, whether to take out (1) or only to count (0).
-- Whether a key is there and taking it out of the set is one step: a key that is set in one step with its tag is never lost from the index. Nor is one
-- that a reader fills in steps: it holds the lease from before its key joins until it is set. A member that we may not ask about is left.
-- Returns the next cursor, how many members were looked at, and how many of them were no keys any more.
local slice = redis.call('SSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local gone = {}
for _, member in ipairs(slice[2]) do
  if redis.pcall('EXISTS', member) == 0 and redis.pcall('EXISTS', side_key('lease', member)) == 0 then
    gone[#gone + 1] = member
  end
end
if ARGV[3] == '1' then
  for first = 1, #gone, 1000 do
    redis.call('SREM', KEYS[1], unpack(gone, first, math.min(first + 999, #gone)))
  end
end
return { slice[1], #slice[2], #gone }
