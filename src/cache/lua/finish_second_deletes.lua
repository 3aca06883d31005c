-- KEYS: the second deletes of a queue. ARGV: targets that are done, each followed by the time it
-- was due.
-- A target that was scheduled anew meanwhile stays.
for i = 1, #ARGV, 2 do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
return #ARGV / 2
