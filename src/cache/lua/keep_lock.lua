-- KEYS: a lock. ARGV: token, for how long (ms), which is the same for all. Takes it, or keeps it.
-- Returns whether it is the token's. One that lasts longer outlived a clock that was set back: it
-- is nobody's.
local holder, left = text_of(KEYS[1]), redis.call('PTTL', KEYS[1])
if holder and holder ~= ARGV[1] and left ~= -1 and left <= tonumber(ARGV[2]) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
