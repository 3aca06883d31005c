-- KEYS: the tag's set, its generation, its record of drains, the detached set's name, the four sets
-- of members set aside.
-- ARGV: the invalidation's number, lifetime of the generation (ms), maximum number of named
-- members, maximum number of members moved one by one, maximum bytes of members named or moved.
-- Returns how many earlier drains have not ended, how many members were detached and, up to the
-- maximum, their names. A second call returns all members.
-- Numbers are drawn elsewhere and may come in another order.
local generation, number = number_of(text_of(KEYS[2]) or ''), tonumber(ARGV[1])
-- Another program wrote a number that is an hour ahead of ours.
if not generation or generation < number or generation > number + 3600000000 then
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
elseif redis.call('PTTL', KEYS[2]) == -1 then
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end

-- Returns all members of a set, or nothing if they have too many bytes.
local function all_members(set)
  local members, _, bytes = some_members(set, '0', 32, math.huge, tonumber(ARGV[5]))
  return bytes <= tonumber(ARGV[5]) and members or nil
end

-- Renames a set, and records its number. Nobody would find the members of a set that is not in the
-- record: if Redis refuses a later step, the set gets its name back.
local function detach(from, detached, number)
  redis.call('RENAME', from, detached)
  local refused = refusal(redis.pcall('SADD', KEYS[3], number)) or refusal(redis.pcall('PERSIST', detached))
  if refused then
    redis.pcall('SREM', KEYS[3], number)
    redis.call('RENAME', detached, from)
    error(refused)
  end
end

if redis.call('SCARD', KEYS[1]) > 0 then
  if redis.call('EXISTS', KEYS[4]) == 1 then
    redis.call('SADD', KEYS[3], ARGV[1])
    redis.call('SUNIONSTORE', KEYS[4], KEYS[4], KEYS[1])
    redis.call('UNLINK', KEYS[1])
  else
    detach(KEYS[1], KEYS[4], ARGV[1])
  end
end
-- Members set aside belong to the tag: few join the rest, many become drains of their own.
for i = 5, #KEYS do
  local aside = redis.call('SCARD', KEYS[i])
  if aside > 0 then
    local members = aside + redis.call('SCARD', KEYS[4]) <= tonumber(ARGV[4]) and all_members(KEYS[i])
    if members then
      for first = 1, #members, 1000 do
        redis.call('SADD', KEYS[4], unpack(members, first, math.min(first + 999, #members)))
      end
      redis.call('SADD', KEYS[3], ARGV[1])
      redis.call('UNLINK', KEYS[i])
    else
      local number = ARGV[1] .. 'a' .. (i - 5)
      local detached = detached_key(KEYS[1], number)
      if redis.call('EXISTS', detached) == 0 then
        detach(KEYS[i], detached, number)
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
