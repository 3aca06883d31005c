-- KEYS: the marks. ARGV: who asks, the lock's first number, how long it holds (ms), `if wanted`, `in any case`, or `and want`: then a heal is wanted.
-- A lock that came back with a snapshot has run out, or runs out soon. Returns 1 to the one who is to heal, 0 while another is at it, 2 where it is done;
-- then Redis' clock, all fields as they were, and the server's identity.
-- What the one who is to heal noted of a heal before is removed: it may die of this one.
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
