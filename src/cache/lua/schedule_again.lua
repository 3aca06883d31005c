-- KEYS: the second passes of a queue. ARGV: for each target when (ms from now), and the target. Of two times for one target the later one counts:
-- each invalidation is a pass for those before it. By Redis' clock, so that workers' need not agree.
local now = redis.call('TIME')
local millis = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
for i = 1, #ARGV, 2 do
  redis.call('ZADD', KEYS[1], 'GT', string.format('%.0f', millis + tonumber(ARGV[i])), ARGV[i + 1])
end
return #ARGV / 2
