-- KEYS: the second deletes of a queue. ARGV: for each target its delay (ms), and the target. If a
-- target is scheduled twice, the later time counts: it also covers the earlier invalidation. Redis'
-- clock counts, so that workers' clocks need not agree.
local now = redis.call('TIME')
local millis = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
for i = 1, #ARGV, 2 do
  redis.call('ZADD', KEYS[1], 'GT', string.format('%.0f', millis + tonumber(ARGV[i])), ARGV[i + 1])
end
return #ARGV / 2
