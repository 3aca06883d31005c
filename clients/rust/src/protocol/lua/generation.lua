-- Returns whether a tag was invalidated since the sequence was at `since`. A generation that is not
-- one of our numbers has replaced one, so it counts as an invalidation. It stays for as long as a
-- lease may last.
local function is_invalidated(generation, since)
  local held = text_of(generation)
  local number = held and number_of(held)
  if not held or (number and number <= (number_of(since) or 0)) then
    return false
  end
  local left = redis.call('PTTL', generation)
  if left == -1 or left > 3600000 then
    redis.call('PEXPIRE', generation, 360000)
  end
  return true
end
