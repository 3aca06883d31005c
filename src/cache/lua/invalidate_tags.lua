-- KEYS: the sequence, the list of tags that drain; then of each tag its set and its generation.
-- ARGV: how long generations are kept (ms), how many members of a tag are deleted here at most, after how many members of all no other tag is begun.
-- Returns how many members were there as keys and how many were not, the place of the first tag that was not begun (-1: none), the places of those
-- that still drain, whoever began that, of those whose set is none each place and what is wrong, and the places of those that had members among
-- unstale's own keys. Such members leave the set, and their keys stay.
local call, pcall = redis.call, redis.pcall
local n = pcall('INCR', KEYS[1])
if type(n) ~= 'number' and standing_number(KEYS[1]) then
  return n
end
if type(n) ~= 'number' or n <= 1 or n > LAST_NUMBER then
  -- The sequence is new, was lost, or somebody else wrote it: it must not run behind what leases remember, so it goes on from the clock.
  n = clock_micros()
  set_number(KEYS[1], n)
end
n = string.format('%.0f', n)

local kept, most, enough = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local sets, emptied, members, leases, refused, own = {}, {}, {}, {}, {}, {}
local left = -1
for i = 3, #KEYS, 2 do
  if #members >= enough then
    left = (i - 3) / 2
    break
  end
  local set = KEYS[i]
  sets[#sets + 1] = set
  local size = pcall('SCARD', set)
  if type(size) == 'table' then
    refused[#refused + 1] = (i - 3) / 2
    refused[#refused + 1] = size
  else
    call('SET', KEYS[i + 1], n, 'PX', kept)
    if size > most then
      local record = side_key('drain', set)
      local detached = record .. ':' .. n
      call('RENAME', set, detached)
      call('PERSIST', detached)
      call('SADD', record, n)
      call('SADD', KEYS[2], set)
    elseif size > 0 then
      emptied[#emptied + 1] = set
      local place = (i - 3) / 2
      for _, member in ipairs(call('SMEMBERS', set)) do
        if not is_own(member) then
          members[#members + 1] = member
          leases[#leases + 1] = side_key('lease', member)
        elseif own[#own] ~= place then
          own[#own + 1] = place
        end
      end
    end
  end
end

local existed = 0
for first = 1, #members, 1000 do
  local last = math.min(first + 999, #members)
  call('UNLINK', unpack(leases, first, last))
  existed = existed + call('UNLINK', unpack(members, first, last))
end
if #emptied > 0 then
  call('UNLINK', unpack(emptied))
end

local draining = {}
if call('EXISTS', KEYS[2]) == 1 then
  for place, drains in ipairs(call('SMISMEMBER', KEYS[2], unpack(sets))) do
    if drains == 1 then
      draining[#draining + 1] = place - 1
    end
  end
end
return { existed, #members - existed, left, draining, refused, own }
