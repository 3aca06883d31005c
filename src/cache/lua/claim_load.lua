-- KEYS: who loads the key, who loads it next, its lease. ARGV: token, for how long (ms), whether it asks for the first time (1).
-- A token begins with 16 characters that name what is loaded, a dot, and 16 that name the event.
-- Returns 'load' where the token may load; 'covered' where another event's load does, or will do, all that this one would; else 'wait'.
-- The asker's invalidation came before: a load whose lease is still valid has begun after it, and a load that is still to come will.
local token, asks_first = ARGV[1], ARGV[3] == '1'
local function claim(key)
  -- No claim is that long, or for ever: the server's clock was set back, or somebody else wrote it. (Without tags, our user may lack PTTL.)
  local left = redis.pcall('PTTL', key)
  return left ~= -1 and not (type(left) == 'number' and left > 360000) and text_of(key)
end
local loading, next = claim(KEYS[1]), claim(KEYS[2])
-- At most one waits: who has taken its place came later, and loads later. A dash says that the load of that token covers who waited.
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
-- What one event does, nothing but itself may do: the token may be that of a worker that was killed, and the asker the event come again.
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
