-- KEYS: the tag's set, its generation, its record of drains, the name for what is detached, the four sets of what upkeep has set aside.
-- ARGV: the invalidation's number, how long the generation is kept (ms), how many members are told at most, how many are moved one by one at most,
-- how many bytes those that are told, or moved, have at most.
-- Returns how many earlier drains have not ended, how many members were detached and, of so few, their names. Done twice, it tells of both.
-- Numbers are drawn elsewhere: they may come in another order.
local generation, number = number_of(text_of(KEYS[2]) or ''), tonumber(ARGV[1])
-- A number that is an hour ahead of ours was written by somebody else.
if not generation or generation < number or generation > number + 3600000000 then
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
elseif redis.call('PTTL', KEYS[2]) == -1 then
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end

-- Returns all members of a set; nothing where they have too many bytes.
local function all_members(set)
  local members, _, bytes = some_members(set, '0', 32, math.huge, tonumber(ARGV[5]))
  return bytes <= tonumber(ARGV[5]) and members or nil
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
    local members = aside + redis.call('SCARD', KEYS[4]) <= tonumber(ARGV[4]) and all_members(KEYS[i])
    if members then
      for first = 1, #members, 1000 do
        redis.call('SADD', KEYS[4], unpack(members, first, math.min(first + 999, #members)))
      end
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
local members = size > 0 and size <= tonumber(ARGV[3]) and all_members(KEYS[4])
if not members then
  return { others, size }
end
return { others, size, unpack(members) }
