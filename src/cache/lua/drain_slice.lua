-- KEYS: a detached set, its tag's record of drains, the list of tags that drain. ARGV: the cursor, about how many members, the drain's number, the
-- tag's set.
-- Members leave the set only after their keys are gone: a slice that fails is found again.
-- Returns the next cursor, how many members were there as keys, how many were not, whether any are left, and whether the set was lost: only the slice
-- that empties it takes its number out of the record, so a set that is gone while its number stands was taken by somebody else.
local slice = redis.call('SSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local members = slice[2]
local existed = 0
for first = 1, #members, 1000 do
  local last = math.min(first + 999, #members)
  local leases = {}
  for i = first, last do
    leases[#leases + 1] = side_key('lease', members[i])
  end
  redis.call('UNLINK', unpack(leases))
  existed = existed + redis.call('UNLINK', unpack(members, first, last))
  redis.call('SREM', KEYS[1], unpack(members, first, last))
end
local left, lost = redis.call('EXISTS', KEYS[1]), 0
if left == 0 then
  local recorded = redis.call('SREM', KEYS[2], ARGV[3])
  if #members == 0 then
    lost = recorded
  end
  if redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('SREM', KEYS[3], ARGV[4])
  end
end
return { slice[1], existed, #members - existed, left, lost }
