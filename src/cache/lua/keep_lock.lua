-- KEYS: a lock. ARGV: token, duration (ms), which is the same for all. Takes the lock, or renews
-- it.
-- Returns 1 if the token has it. Nobody has a lock that lasts longer, or has no TTL: it outlived a
-- clock that was set back, or another program wrote it.
local holder, left = text_of(KEYS[1]), redis.call('PTTL', KEYS[1])
if holder and holder ~= ARGV[1] and left ~= -1 and left <= tonumber(ARGV[2]) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
