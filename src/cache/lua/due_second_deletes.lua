-- KEYS: the second deletes of a queue, the lock of the worker that does them. ARGV: maximum number,
-- token, duration of the lock (ms).
-- Returns what is due, each target followed by its time, or nothing while another worker has the
-- lock.
local now = redis.call('TIME')
local millis = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', millis), 'WITHSCORES', 'LIMIT', 0, ARGV[1])
if #due == 0 then
  return due
end
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[2] then
  return {}
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return due
