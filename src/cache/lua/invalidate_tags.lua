-- KEYS: the sequence, the list of tags that drain, the list of sets with members set aside; then
-- each tag's set and its generation.
-- ARGV: lifetime of generations (ms), maximum number of members of a tag to delete here, and of all
-- tags together.
-- Returns how many keys existed, how many did not, the place of the first tag that was not begun
-- (-1: none), how many tags had no set, the places of tags that still drain, place and error of
-- each set that is not one, the places of tags with members among unstale's own keys. Such members
-- leave the set, and their keys stay. A tag with more members than the remaining maximum is not
-- begun.
local call, pcall = redis.call, redis.pcall
local n = pcall('INCR', KEYS[1])
if type(n) ~= 'number' and not is_of_value(n.err) then
  return n
end
if type(n) ~= 'number' or n <= 1 or n > LAST_NUMBER then
  -- The sequence is new, was lost, or another program wrote it. It must not be lower than leases:
  -- it continues from the clock.
  n = clock_micros()
  set_number(KEYS[1], n)
end
n = string.format('%.0f', n)

local kept, most, enough = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local sets, emptied, members, leases, refused, own = {}, {}, {}, {}, {}, {}
local left, absent = -1, 0

-- Which of the sets have members set aside, by place.
local asides = {}
if call('EXISTS', KEYS[3]) == 1 then
  local all = {}
  for i = 4, #KEYS, 2 do
    all[#all + 1] = KEYS[i]
  end
  local answers = pcall('SMISMEMBER', KEYS[3], unpack(all))
  -- A key of another type under this name is not ours.
  asides = answers.err and {} or answers
end

-- The slow lane deletes the members of `from`, under that number.
local function detach(set, from, number)
  local record, detached = side_key('drain', set), detached_key(set, number)
  call('RENAME', from, detached)
  call('PERSIST', detached)
  call('SADD', record, number)
  call('SADD', KEYS[2], set)
end

local function empty(set, place)
  emptied[#emptied + 1] = set
  for _, member in ipairs(call('SMEMBERS', set)) do
    if not is_own(member) then
      members[#members + 1] = member
      leases[#leases + 1] = side_key('lease', member)
    elseif own[#own] ~= place then
      own[#own + 1] = place
    end
  end
end

for i = 4, #KEYS, 2 do
  local set, place = KEYS[i], (i - 4) / 2
  local size = pcall('SCARD', set)
  if type(size) == 'number' and size <= most and #members + size > enough then
    left = place
    break
  end
  sets[#sets + 1] = set
  if type(size) == 'table' then
    refused[#refused + 1] = place
    refused[#refused + 1] = size
  else
    call('SET', KEYS[i + 1], n, 'PX', kept)
    local in_set = size
    if asides[place + 1] == 1 then
      for a = 0, 3 do
        local aside = detached_key(set, 'aside' .. a)
        local more = call('SCARD', aside)
        if more > 0 and (size > most or size + more > most) then
          detach(set, aside, n .. 'a' .. a)
        elseif more > 0 then
          size = size + more
          empty(aside, place)
        end
      end
    end
    if size > most then
      detach(set, set, n)
    elseif in_set > 0 then
      empty(set, place)
    elseif size == 0 then
      absent = absent + 1
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
if #sets > 0 and call('EXISTS', KEYS[2]) == 1 then
  for place, drains in ipairs(call('SMISMEMBER', KEYS[2], unpack(sets))) do
    if drains == 1 then
      draining[#draining + 1] = place - 1
    end
  end
end
return { existed, #members - existed, left, absent, draining, refused, own }
