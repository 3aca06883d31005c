-- KEYS: the tag's set, its generation, its record of drains, the detached set's name, the four sets
-- of members set aside.
-- ARGV: the invalidation's number, lifetime of the generation (ms), maximum number of named
-- members, maximum number of members moved one by one.
-- Returns how many earlier drains have not ended, how many members were detached and, up to the
-- maximum, their names. A second call returns all members.
-- Numbers are drawn elsewhere and may come in another order.
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
-- Members set aside belong to the tag: few join the rest, many become drains of their own.
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
