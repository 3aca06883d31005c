-- KEYS: the marks. ARGV: the lock's field, who heals, how long the lock holds (ms), the field of
-- the heal's progress, its text or nothing. Keeps the lock, whatever number it holds, and notes the
-- progress. Returns 1, or 0 where the lock is another's.
local token, number = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^(%w+):(%d+):%d+$')
if token ~= ARGV[2] then
  return 0
end
local time = redis.call('TIME')
local till = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], string.format('%s:%s:%.0f', token, number, till))
if ARGV[5] ~= '' then
  redis.call('HSET', KEYS[1], ARGV[4], ARGV[5])
end
return 1
