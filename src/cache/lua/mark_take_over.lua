-- KEYS: the marks. ARGV: how old a living worker's mark may be (ms), then fields of workers that
-- have ended or died. The caller's own mark covers what they covered. A worker that was but silent
-- finds its number, and covers again what it has.
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
