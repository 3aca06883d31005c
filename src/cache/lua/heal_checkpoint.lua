-- KEYS: the checkpoints. ARGV: the healing worker, the number that the lock must hold, the next,
-- duration of the lock (ms).
-- As `checkpoint_write.lua`, for the healing worker: it also renews the lock. Returns 1, or 0 if
-- another has the lock or the lock went back.
local token, number = string.match(redis.call('HGET', KEYS[1], 'lock') or '', '^(%w+):(%d+):%d+$')
if token ~= ARGV[1] or number ~= ARGV[2] then
  return 0
end
local time = redis.call('TIME')
local till = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[4])
redis.call('HSET', KEYS[1], 'lock', string.format('%s:%s:%.0f', ARGV[1], ARGV[3], till))
return 1
