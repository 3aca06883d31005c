-- KEYS: the sequence, the list of tags that drain; then of each tag its set, its generation and its record of drains.
-- ARGV: how long generations are kept (ms), how many members of a tag are deleted here at most.
-- Returns for each tag how many members were there as keys, how many were not, and whether it still drains, whoever began that; or what is wrong
-- with its set.
local n = redis.call('INCR', KEYS[1])
if n == 1 then
  -- The sequence is new, or was lost: it must not run behind what leases remember, so it goes on from the clock (microseconds, exact in a double).
  local now = redis.call('TIME')
  n = tonumber(now[1]) * 1000000 + tonumber(now[2])
  redis.call('SET', KEYS[1], string.format('%.0f', n))
end
n = string.format('%.0f', n)

local call, pcall, insert = redis.call, redis.pcall, table.insert
local kept, most = ARGV[1], tonumber(ARGV[2])
local answers, records, leases = {}, {}, {}
for i = 3, #KEYS, 3 do
  local set, record = KEYS[i], KEYS[i + 2]
  local size = pcall('SCARD', set)
  if type(size) == 'table' then
    insert(answers, size)
  else
    call('SET', KEYS[i + 1], n, 'PX', kept)
    local existed = 0
    if size > most then
      local detached = record .. ':' .. n
      call('RENAME', set, detached)
      call('PERSIST', detached)
      call('SADD', record, n)
      call('SADD', KEYS[2], set)
      size = 0
    elseif size > 0 then
      local doomed = call('SMEMBERS', set)
      for _, member in ipairs(doomed) do
        insert(leases, side_key('lease', member))
      end
      insert(doomed, set)
      existed = call('UNLINK', unpack(doomed)) - 1
    end
    insert(answers, { existed, size - existed, 0 })
  end
  insert(records, record)
end

for first = 1, #leases, 1000 do
  call('UNLINK', unpack(leases, first, math.min(first + 999, #leases)))
end
if call('EXISTS', unpack(records)) > 0 then
  for i, record in ipairs(records) do
    answers[i][3] = call('EXISTS', record)
  end
end
return answers
