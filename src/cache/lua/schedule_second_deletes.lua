-- KEYS: the second deletes of a queue, their clock. ARGV: for each target its delay (ms), and the
-- target. If a target is scheduled twice, the later time counts: it also covers the earlier
-- invalidation. A fraction in the held time marks a refused one, which is only tried again: the new
-- time replaces it.
local now = lasting_time(KEYS[1], KEYS[2])
for i = 1, #ARGV, 2 do
  local at = string.format('%.0f', now + tonumber(ARGV[i]))
  if redis.call('ZADD', KEYS[1], 'GT', 'CH', at, ARGV[i + 1]) == 0 and tonumber(redis.call('ZSCORE', KEYS[1], ARGV[i + 1])) % 1 > 0 then
    redis.call('ZADD', KEYS[1], at, ARGV[i + 1])
  end
end
return #ARGV / 2
