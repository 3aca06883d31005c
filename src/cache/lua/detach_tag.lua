-- KEYS: the tag's set, its generation, its record of drains, the name for what is detached.
-- ARGV: the invalidation's number, how long the generation is kept (ms), how many members are told at most.
-- Returns how many earlier drains have not ended, how many members were detached and, of so few, their names. Done twice, it tells of both.
-- Numbers are drawn elsewhere: they may come in another order.
local generation = redis.call('GET', KEYS[2])
if not generation or tonumber(generation) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
end
if redis.call('SCARD', KEYS[1]) > 0 then
  if redis.call('EXISTS', KEYS[4]) == 1 then
    redis.call('SUNIONSTORE', KEYS[4], KEYS[4], KEYS[1])
    redis.call('UNLINK', KEYS[1])
  else
    redis.call('RENAME', KEYS[1], KEYS[4])
    redis.call('PERSIST', KEYS[4])
  end
  redis.call('SADD', KEYS[3], ARGV[1])
end
local others = redis.call('SCARD', KEYS[3]) - redis.call('SISMEMBER', KEYS[3], ARGV[1])
local size = redis.call('SCARD', KEYS[4])
if size == 0 or size > tonumber(ARGV[3]) then
  return { others, size }
end
return { others, size, unpack(redis.call('SMEMBERS', KEYS[4])) }
