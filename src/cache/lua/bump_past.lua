-- KEYS: a counter. ARGV: the minimum increment.
-- A server that lost writes may have issued higher numbers than it holds: the counter jumps past
-- them, to the time in milliseconds. Numbers beyond 2^53, which Lua cannot add to, only rise.
local time = redis.call('TIME')
local past = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local raised = redis.call('INCRBY', KEYS[1], ARGV[1])
if raised < past then
  redis.call('INCRBY', KEYS[1], string.format('%.0f', past - raised))
end
return raised
