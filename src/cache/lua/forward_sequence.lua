-- KEYS: the sequence. It must not run behind what leases and generations on other servers remember: it goes on from the clock (microseconds), as it
-- does when it is new.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local held = tonumber(redis.call('GET', KEYS[1]) or '0')
if held < now then
  redis.call('SET', KEYS[1], string.format('%.0f', now))
end
return 1
