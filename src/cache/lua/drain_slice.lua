-- KEYS: a detached set, its tag's record of drains, the list of tags that drain. ARGV: the cursor,
-- about how many members, the drain's number, the tag's set, the prefix of tags' sets.
-- Members leave the set only after their keys are gone, so a failed slice is repeated. Members
-- among unstale's own keys leave the set, and their keys stay.
-- Returns the next cursor, how many keys existed, how many did not, 1 if members are left, 1 if the
-- set was lost, how many members were own keys, how many were longer than any key of a rule.
-- Only the slice that empties the set removes its number from the record. So a missing set with a
-- recorded number was lost.
local members, cursor = some_members(KEYS[1], ARGV[1], 1, tonumber(ARGV[2]), SLICE_BYTES)
local existed, own, long = 0, 0, 0
for first = 1, #members, 1000 do
  local last = math.min(first + 999, #members)
  local leases, keys = {}, {}
  for i = first, last do
    if is_own(members[i], ARGV[5]) then
      own = own + 1
    else
      long = long + (#members[i] > LONGEST_KEY and 1 or 0)
      leases[#leases + 1] = side_key('lease', members[i])
      keys[#keys + 1] = members[i]
    end
  end
  if #keys > 0 then
    redis.call('UNLINK', unpack(leases))
    existed = existed + redis.call('UNLINK', unpack(keys))
  end
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
return { cursor, existed, #members - own - existed, left, lost, own, long }
