-- KEYS: keys, then the fence of each. ARGV: how long fences are kept (ms), then each one's mark. Returns how many keys were there.
-- All in one step: were a fence raised before its key goes, a write in between would do nothing, and what is to go would still be read.
local count = #KEYS / 2
for i = 1, count do
  raise_fence(KEYS[count + i], ARGV[i + 1], ARGV[1])
end
return redis.call('UNLINK', unpack(KEYS, 1, count))
