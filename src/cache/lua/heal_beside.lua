-- KEYS: the checkpoints. ARGV: the asker, duration of the lock (ms).
-- Takes the lock of heals beside live workers. Returns 1 if the asker is to heal, 0 while another
-- does; then Redis' clock, all fields as they were, and the server's identity.
local now = clock()
local current = identity()
local fields = redis.call('HGETALL', KEYS[1])
local token, till = string.match(redis.call('HGET', KEYS[1], 'lock:beside') or '', '^(%w+):%d+:(%d+)$')
if token and token ~= ARGV[1] and tonumber(till) > now and tonumber(till) <= now + tonumber(ARGV[2]) then
  return { 0, now, fields, current }
end
redis.call('HSET', KEYS[1], 'lock:beside', string.format('%s:%s:%.0f', ARGV[1], NO_BOUND, now + tonumber(ARGV[2])))
return { 1, now, fields, current }
