-- KEYS: the checkpoints. ARGV: the lock's field, the healing worker, duration of the lock (ms), the
-- field of the progress, its text or nothing. Renews the lock with any number in it, and stores the
-- progress. Returns 1, or 0 if another has the lock.
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
