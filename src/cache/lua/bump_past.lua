-- KEYS: a counter. ARGV: the minimum increment.
-- A server that lost writes may have issued higher numbers than it holds: the counter jumps past
-- them, to the time in milliseconds. Numbers beyond 2^53, which Lua cannot add to, only rise.
-- A counter of at most ten years ahead of the clock jumped before that was set back: it jumps past
-- an hour of one number each millisecond.
local HOUR, TEN_YEARS = 3600000, 315360000000
local time = redis.call('TIME')
local past = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local raised = redis.call('INCRBY', KEYS[1], ARGV[1])
if raised < past then
  redis.call('INCRBY', KEYS[1], string.format('%.0f', past - raised))
elseif raised - past < TEN_YEARS then
  redis.call('INCRBY', KEYS[1], HOUR)
end
return raised
