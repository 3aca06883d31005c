-- KEYS: the second deletes of a queue, their clock. ARGV: targets, each followed by the time it was
-- due, and by nothing if it is done, or after how many milliseconds it is to be tried again.
-- A target that was scheduled anew meanwhile stays.
local now
for i = 1, #ARGV, 3 do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    if ARGV[i + 2] == '' then
      redis.call('ZREM', KEYS[1], ARGV[i])
    else
      now = now or lasting_time(KEYS[1], KEYS[2])
      redis.call('ZADD', KEYS[1], string.format('%.6f', now + tonumber(ARGV[i + 2])), ARGV[i])
    end
  end
end
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('UNLINK', KEYS[2])
end
return #ARGV / 3
