-- Applications may add members of any length to a set. So a set is read in slices, each wider than
-- the one before.

-- Bytes that a step of the slow lane reads at once, without the last member.
local SLICE_BYTES = 262144

-- Reads members from a cursor on, `count` of them first. Ends once SSCAN was asked for `most`
-- members, or above `most_bytes`. Returns the members, the next cursor, and how many bytes the
-- members have.
local function some_members(set, cursor, count, most, most_bytes)
  local members, bytes, asked = nil, 0, 0
  repeat
    local slice = redis.call('SSCAN', set, cursor, 'COUNT', count)
    cursor, asked = slice[1], asked + count
    for _, member in ipairs(slice[2]) do
      bytes = bytes + #member
      if members then
        members[#members + 1] = member
      end
    end
    members = members or slice[2]
    -- As many more as the bytes allow, if they are as long as those so far.
    local allowed = bytes > 0 and math.floor((most_bytes - bytes) * #members / bytes) or count * 2
    count = math.max(1, math.min(count * 4, allowed, most - asked))
  until cursor == '0' or bytes > most_bytes or asked >= most
  return members, cursor, bytes
end

-- Reads some members from a cursor on, or from the beginning, where removed members leave gaps.
local function any_members(set, cursor, most)
  for _, from in ipairs({ cursor, '0' }) do
    repeat
      local members, next = some_members(set, from, 1, most, SLICE_BYTES)
      if #members > 0 then
        return members
      end
      from = next
    until from == '0'
  end
  return {}
end
