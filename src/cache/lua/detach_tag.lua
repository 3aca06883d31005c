-- KEYS: the tag's set, its generation, its record of drains, the name for what is detached, the four sets of what upkeep has set aside.
-- ARGV: the invalidation's number, how long the generation is kept (ms), how many members are told at most, how many are moved one by one at most.
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
-- What was set aside is the tag's as well: together with the rest where there is little of it, else as drains of their own.
for i = 5, #KEYS do
  local aside = redis.call('SCARD', KEYS[i])
  if aside > 0 then
    if aside + redis.call('SCARD', KEYS[4]) <= tonumber(ARGV[4]) then
      redis.call('SUNIONSTORE', KEYS[4], KEYS[4], KEYS[i])
      redis.call('UNLINK', KEYS[i])
      redis.call('SADD', KEYS[3], ARGV[1])
    else
      local number = ARGV[1] .. 'a' .. (i - 5)
      local detached = detached_key(KEYS[1], number)
      if redis.call('EXISTS', detached) == 0 then
        redis.call('RENAME', KEYS[i], detached)
        redis.call('PERSIST', detached)
        redis.call('SADD', KEYS[3], number)
      end
    end
  end
end
local others = redis.call('SCARD', KEYS[3]) - redis.call('SISMEMBER', KEYS[3], ARGV[1])
local size = redis.call('SCARD', KEYS[4])
if size == 0 or size > tonumber(ARGV[3]) then
  return { others, size }
end
return { others, size, unpack(redis.call('SMEMBERS', KEYS[4])) }
