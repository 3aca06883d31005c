-- KEYS: the claim, the waiting place, the lease. ARGV: token, duration (ms), 1 if it asks for the
-- first time.
-- A token begins with 16 characters for what is loaded, a dot, and 16 for the event.
-- Returns 'load' if the token may load, 'covered' if another event's load does the same, else
-- 'wait'.
-- The asker's invalidation came first. So a load with a valid lease began after it, and a waiting
-- load will.
local token, asks_first = ARGV[1], ARGV[3] == '1'
local function claim(key)
  -- No claim is that long, or lacks a TTL: the server's clock was set back, or another program
  -- wrote it. (Without tags, our user may lack PTTL.)
  local left = redis.pcall('PTTL', key)
  return left ~= -1 and not (type(left) == 'number' and left > 360000) and text_of(key)
end
local loading, next = claim(KEYS[1]), claim(KEYS[2])
-- Only one waits. If another took its place, that one loads later. A dash means that the token's
-- load also serves the waiter.
if next and next ~= token and not asks_first then
  return 'covered'
end
if not loading or loading == token then
  redis.call('SET', KEYS[1], token, 'PX', ARGV[2])
  if next == token then
    redis.call('UNLINK', KEYS[2])
  end
  return 'load'
end
-- Loads of one event do not serve each other: the token may be a killed worker's, and the asker its
-- event redelivered.
local function does_the_same(other)
  return string.sub(other, 1, 16) == string.sub(token, 1, 16) and string.sub(other, 18, 33) ~= string.sub(token, 18, 33)
end
if does_the_same(loading) and text_of(KEYS[3]) == loading then
  if next == token then
    redis.call('UNLINK', KEYS[2])
  end
  return 'covered'
end
if next and next ~= token and string.sub(next, 1, 1) ~= '-' and does_the_same(next) then
  return 'covered'
end
redis.call('SET', KEYS[2], token, 'PX', ARGV[2])
return 'wait'
