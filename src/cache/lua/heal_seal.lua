-- KEYS: the marks. ARGV: who heals, the number that the lock must hold, the next, how long it holds (ms).
-- As `mark_seal.lua`, for the one who heals: it also renews the lock. Returns 1, or 0 where the lock is another's, or went back.
local token, number = string.match(redis.call('HGET', KEYS[1], 'lock') or '', '^(%w+):(%d+):%d+$')
if token ~= ARGV[1] or number ~= ARGV[2] then
  return 0
end
local time = redis.call('TIME')
local till = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[4])
redis.call('HSET', KEYS[1], 'lock', string.format('%s:%s:%.0f', ARGV[1], ARGV[3], till))
return 1
