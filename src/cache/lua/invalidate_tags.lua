-- KEYS: the sequence, the list of tags that drain, the list of sets with members set aside; then
-- each tag's set and its generation.
-- ARGV: lifetime of generations (ms), maximum number of members of a tag to delete here, and of all
-- tags together, maximum bytes of the members of a tag, and of all tags together, the prefix of
-- tags' sets.
-- Returns how many keys existed, how many did not, the place of the first tag that was not begun
-- (-1: none), how many tags had no set, the places of tags that still drain, place and error of
-- each set that is not one, the places of tags with members longer than any key of a rule, the
-- places of tags with members among unstale's own keys. Own keys leave the set, and stay.
-- A tag with more members than the remaining maximum is not begun. The slow lane deletes the
-- members of a tag with too many bytes, and the tags after it are not begun.
local call, pcall, byte, find = redis.call, redis.pcall, string.byte, string.find
local n = draw_numbers(KEYS[1], 1)

local kept, most, enough = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local most_bytes, enough_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local tag_prefix, first_of_tags = ARGV[6], byte(ARGV[6])
local sets, emptied, members, leases, refused, own, long = {}, {}, {}, {}, {}, {}, {}
local left, absent, bytes, taken = -1, 0, 0, 0
local NOTHING = {}

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

-- The slow lane deletes the members of `from`, under that number. Nobody would find the members of
-- a set that is not in the record: if Redis refuses a later step, the set gets its name back.
-- Returns the error.
local function detach(set, from, number)
  local record, detached = side_key('drain', set), detached_key(set, number)
  local refused = refusal(pcall('RENAME', from, detached))
  if refused then
    return refused
  end
  refused = refusal(pcall('SADD', record, number)) or refusal(pcall('SADD', KEYS[2], set)) or refusal(pcall('PERSIST', detached))
  if refused then
    pcall('SREM', record, number)
    if pcall('EXISTS', record) == 0 then
      pcall('SREM', KEYS[2], set)
    end
    call('RENAME', detached, from)
  end
  return refused
end

-- Takes the members of a set, in slices, each wider than the one before, until they have more bytes
-- than `allowed`. Returns how many bytes they have.
local function take(from, place, allowed)
  -- The first slice has ten members or some more, which is all of most sets.
  local slice, cursor, count, read = call('SSCAN', from, '0'), nil, 10, 0
  repeat
    slice = slice or call('SSCAN', from, cursor, 'COUNT', count)
    local found = slice[2]
    cursor, count, slice = slice[1], count * 4, nil
    for f = 1, #found do
      local member = found[f]
      local length = #member
      read = read + length
      if read > allowed then
        return read
      end
      if length > LONGEST_KEY and long[#long] ~= place then
        long[#long + 1] = place
      end
      -- The checks for the first byte and for a brace come first: most keys have neither.
      local first = byte(member)
      if (first ~= 117 and first ~= first_of_tags) or not is_own(member, tag_prefix) then
        taken = taken + 1
        members[taken] = member
        leases[taken] = find(member, '}', 1, true) and side_key('lease', member) or 'unstale:lease/{' .. member .. '}'
      elseif own[#own] ~= place then
        own[#own + 1] = place
      end
    end
  until cursor == '0'
  return read
end

-- Gives back the taken members of a tag, which are not deleted here.
local function put_back(before, place)
  for m = taken, before + 1, -1 do
    members[m], leases[m] = nil, nil
  end
  taken = before
  own[#own] = own[#own] ~= place and own[#own] or nil
  long[#long] = long[#long] ~= place and long[#long] or nil
end

-- Detaches a tag's set and its sets of members set aside. Returns the first error.
local function detach_all(set, has_members, aside)
  local refused = has_members and detach(set, set, n) or nil
  for a, from in pairs(aside) do
    refused = refused or detach(set, from, n .. 'a' .. a)
  end
  return refused
end

for i = 4, #KEYS, 2 do
  local set, place = KEYS[i], (i - 4) / 2
  local size = pcall('SCARD', set)
  if type(size) == 'number' and size <= most and taken + size > enough then
    left = place
    break
  end
  if type(size) == 'table' then
    sets[#sets + 1] = set
    refused[#refused + 1] = place
    refused[#refused + 1] = size
  else
    local in_set, aside = size, nil
    if asides[place + 1] == 1 then
      aside = {}
      for a = 0, 3 do
        local name = detached_key(set, 'aside' .. a)
        local more = call('SCARD', name)
        if more > 0 then
          size, aside[a] = size + more, name
        end
      end
    end
    local before, of_tag = taken, 0
    if size <= most then
      if in_set > 0 then
        of_tag = take(set, place, most_bytes)
      end
      for _, name in pairs(aside or NOTHING) do
        of_tag = of_tag <= most_bytes and of_tag + take(name, place, most_bytes - of_tag) or of_tag
      end
    end
    if bytes > 0 and bytes + of_tag > enough_bytes then
      put_back(before, place)
      left = place
      break
    end
    bytes = bytes + of_tag
    sets[#sets + 1] = set
    call('SET', KEYS[i + 1], n, 'PX', kept)
    if size > most or of_tag > most_bytes then
      put_back(before, place)
      local err = detach_all(set, in_set > 0, aside or NOTHING)
      if err then
        refused[#refused + 1] = place
        refused[#refused + 1] = err
      end
    elseif size > 0 then
      if in_set > 0 then
        emptied[#emptied + 1] = set
      end
      for _, name in pairs(aside or NOTHING) do
        emptied[#emptied + 1] = name
      end
    else
      absent = absent + 1
    end
    if of_tag > most_bytes and KEYS[i + 2] then
      left = place + 1
      break
    end
  end
end

local existed = 0
for first = 1, taken, 1000 do
  local last = math.min(first + 999, taken)
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
return { existed, taken - existed, left, absent, draining, refused, long, own }
