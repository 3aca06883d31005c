-- KEYS: the sequence. ARGV: how many numbers.
-- Returns the first of them, all of them above any before. They keep up with the clock (microseconds, exact in a double): a replica that became the
-- primary without the last steps of the sequence must not hand out what leases remember.
local now = redis.call('TIME')
local clock = tonumber(now[1]) * 1000000 + tonumber(now[2])
local first = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), clock) + 1
redis.call('SET', KEYS[1], string.format('%.0f', first + tonumber(ARGV[1]) - 1))
return string.format('%.0f', first)
