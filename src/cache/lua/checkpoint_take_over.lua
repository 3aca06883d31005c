-- KEYS: the checkpoints. ARGV: maximum age of a living worker's checkpoint (ms), then fields of
-- ended or dead workers.
-- The caller's own checkpoint covers what they covered. A worker that was only silent finds its
-- number, and covers its events again.
local now = clock()
for i = 2, #ARGV do
  local field = ARGV[i]
  local number, low, at = read(redis.call('HGET', KEYS[1], field))
  if number and string.find(field, ':', 1, true) then
    redis.call('HDEL', KEYS[1], field, 'offset:' .. field)
  elseif number and low ~= NO_BOUND and now - at > tonumber(ARGV[1]) then
    redis.call('HSET', KEYS[1], field, string.format('%.0f:%s:%.0f', number, NO_BOUND, at))
    redis.call('HDEL', KEYS[1], 'offset:' .. field)
  end
end
return 1
