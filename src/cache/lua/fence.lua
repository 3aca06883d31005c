-- A fence holds the highest version of one entity that was written to a key or deleted from it, as `digits:event:place`; `digits::` where two
-- events had that version. `plan/mark.rs` has the same rules. Versions are compared as text: Lua's numbers are exact to 2^53 only.

local NEWER, TIED, OLD = 1, 0, -1

-- How a mark stands to what the fence holds. A text that is none of ours counts as none.
local function stands(mark, fence)
  local digits, event, place = string.match(mark, '^(%d+):(%x*):(%d*)$')
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

-- Raises a fence to a mark, and returns how the mark stood to what was there.
local function raise_fence(key, mark, millis)
  local fence = redis.pcall('SET', key, mark, 'PX', millis, 'NX', 'GET')
  if not fence then
    return NEWER
  end
  local standing = NEWER
  if type(fence) == 'string' then
    standing = stands(mark, fence)
  elseif not string.find(fence.err, 'WRONGTYPE', 1, true) then
    error(fence)
  end
  -- Another type's key under this name is none of ours, and is replaced.
  if standing == NEWER then
    redis.call('SET', key, mark, 'PX', millis)
  elseif standing == TIED then
    redis.call('SET', key, string.match(mark, '^%d+') .. '::', 'PX', millis)
  elseif redis.pcall('PTTL', key) == -1 then
    -- Somebody else wrote it, for ever.
    redis.pcall('PEXPIRE', key, millis)
  end
  return standing
end
