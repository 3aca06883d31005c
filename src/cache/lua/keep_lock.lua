-- KEYS: a lock. ARGV: token, duration (ms), which is the same for all. Takes the lock, or renews
-- it.
-- Returns 1 if the token has it. A lock that lasts longer outlived a clock that was set back:
-- nobody has it.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and redis.call('PTTL', KEYS[1]) <= tonumber(ARGV[2]) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
