-- KEYS: the tag's set, its generation, its record of drains, the sequence, the list of tags that drain.
-- ARGV: how long the generation is kept (ms), how many members are deleted here at most.
-- Returns how many members were there as keys, how many were not, and whether the tag still drains, whoever began that.
local size = redis.call('SCARD', KEYS[1])
local n = redis.call('INCR', KEYS[4])
if n == 1 then
  -- The sequence is new, or was lost: it must not run behind what leases remember, so it goes on from the clock (microseconds, exact in a double).
  local now = redis.call('TIME')
  n = tonumber(now[1]) * 1000000 + tonumber(now[2])
  redis.call('SET', KEYS[4], string.format('%.0f', n))
end
n = string.format('%.0f', n)
redis.call('SET', KEYS[2], n, 'PX', ARGV[1])

local existed, gone = 0, 0
if size > tonumber(ARGV[2]) then
  local detached = KEYS[3] .. ':' .. n
  redis.call('RENAME', KEYS[1], detached)
  redis.call('PERSIST', detached)
  redis.call('SADD', KEYS[3], n)
  redis.call('SADD', KEYS[5], KEYS[1])
elseif size > 0 then
  local members = redis.call('SMEMBERS', KEYS[1])
  local leases = {}
  for i, member in ipairs(members) do
    leases[i] = side_key('lease', member)
  end
  redis.call('UNLINK', unpack(leases))
  existed = redis.call('UNLINK', unpack(members))
  gone = #members - existed
  redis.call('UNLINK', KEYS[1])
end
return { existed, gone, redis.call('EXISTS', KEYS[3]) }
