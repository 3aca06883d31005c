-- KEYS: a detached set, the record of drains. ARGV: the cursor, about how many members, the set's entry in the record.
-- Members leave the set only after their keys are gone: a slice that fails is found again.
-- Returns the next cursor, how many members were there as keys, how many were not, and whether any are left.
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
local left = redis.call('EXISTS', KEYS[1])
if left == 0 then
  redis.call('ZREM', KEYS[2], ARGV[3])
end
return { slice[1], existed, #members - existed, left }
