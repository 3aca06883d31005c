-- KEYS: keys, then the fence of each. ARGV: lifetime of fences (ms), then each version. Returns how
-- many keys existed.
-- This is one step: after a raised fence, a write before the deletion would do nothing, and the old
-- value would stay readable.
local count = #KEYS / 2
for i = 1, count do
  raise_fence(KEYS[count + i], ARGV[i + 1], ARGV[1])
end
return redis.call('UNLINK', unpack(KEYS, 1, count))
