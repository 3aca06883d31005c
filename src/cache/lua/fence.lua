-- A fence holds the highest version of one entity that was written to a key or deleted from it, as
-- `digits:event:place`; `digits::` if two events had that version. `plan/mark.rs` has the same
-- rules. Versions are compared as text: Lua's numbers are exact to 2^53 only.

local NEWER, TIED, OLD = 1, 0, -1

-- Compares a version with the text of a fence. A text of another form counts as no fence.
local function compare(version, fence)
  local digits, event, place = string.match(version, '^(%d+):(%x*):(%d*)$')
  local their_digits, their_event, their_place = string.match(fence, '^(%d+):(%x*):(%d*)$')
  if not their_digits then
    return NEWER
  end
  if digits ~= their_digits then
    local is_higher = #digits > #their_digits or (#digits == #their_digits and digits > their_digits)
    return is_higher and NEWER or OLD
  end
  if event == '' or event ~= their_event then
    return TIED
  end
  return tonumber(place) > (tonumber(their_place) or -1) and NEWER or OLD
end

-- Raises a fence to a version, and returns how the version compared to the previous one.
local function raise_fence(key, version, millis)
  local fence = redis.pcall('SET', key, version, 'PX', millis, 'NX', 'GET')
  if not fence then
    return NEWER
  end
  local order = NEWER
  if type(fence) == 'string' then
    order = compare(version, fence)
  elseif not string.find(fence.err, 'WRONGTYPE', 1, true) then
    error(fence)
  end
  -- A key of another type under this name is not ours, and is replaced.
  if order == NEWER then
    redis.call('SET', key, version, 'PX', millis)
  elseif order == TIED then
    redis.call('SET', key, string.match(version, '^%d+') .. '::', 'PX', millis)
  elseif redis.pcall('PTTL', key) == -1 then
    -- No fence lacks a TTL: another program wrote it.
    redis.pcall('PEXPIRE', key, millis)
  end
  return order
end
