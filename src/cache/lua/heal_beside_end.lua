-- KEYS: the marks. ARGV: who healed, 1 where it is done, a field and its text that say so or
-- nothing twice, then fields of heals that were owed and what they held when this one began.
-- Ends a heal beside live workers. What was owed since stays.
local token = string.match(redis.call('HGET', KEYS[1], 'lock:beside') or '', '^(%w+):')
if ARGV[2] == '1' then
  for i = 5, #ARGV, 2 do
    if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
      redis.call('HDEL', KEYS[1], ARGV[i])
    end
  end
  if ARGV[3] ~= '' then
    redis.call('HSET', KEYS[1], ARGV[3], ARGV[4])
  end
end
if token == ARGV[1] then
  redis.call('HDEL', KEYS[1], 'lock:beside')
  if ARGV[2] == '1' then
    redis.call('HDEL', KEYS[1], 'progress:beside')
  end
end
return 1
