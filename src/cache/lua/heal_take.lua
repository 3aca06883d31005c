-- KEYS: the checkpoints. ARGV: the asker, the lock's first number, its duration (ms), `if wanted`,
-- `in any case`, or `and want`, which also requests a heal.
-- A lock that came back with a snapshot has run out, or soon will. Returns 1 if the asker is to
-- heal, 0 while another does, 2 if it is done; then Redis' clock, all fields as they were, and the
-- server's identity.
-- Removes the asker's note that it survived: it may die of this heal.
-- Workers of earlier versions take the lock for 10 s.
local now = clock()
local current = identity()
local fields = redis.call('HGETALL', KEYS[1])
local wanted = redis.call('HEXISTS', KEYS[1], 'wanted') == 1
if not wanted and ARGV[4] == 'if wanted' then
  return { 2, now, fields, current }
end
local token, till = string.match(redis.call('HGET', KEYS[1], 'lock') or '', '^(%w+):%d+:(%d+)$')
if token and token ~= ARGV[1] and tonumber(till) > now and tonumber(till) <= now + math.max(tonumber(ARGV[3]), 10000) then
  return { 0, now, fields, current }
end
if not wanted and ARGV[4] == 'and want' then
  redis.call('HSET', KEYS[1], 'wanted', string.format('%.0f', now), 'why', 'elsewhere')
end
redis.call('HDEL', KEYS[1], 'survived:' .. ARGV[1])
redis.call('HSET', KEYS[1], 'lock', string.format('%s:%s:%.0f', ARGV[1], ARGV[2], now + tonumber(ARGV[3])))
return { 1, now, fields, current }
