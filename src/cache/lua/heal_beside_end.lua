-- KEYS: the marks. ARGV: who healed, then changes, which note that it is done; none where it is not.
-- Ends a heal beside live workers. A field that has changed since it began stays as it is.
local token = string.match(redis.call('HGET', KEYS[1], 'lock:beside') or '', '^(%w+):')
change(KEYS[1], 2)
if token == ARGV[1] then
  redis.call('HDEL', KEYS[1], 'lock:beside')
  if #ARGV > 1 then
    redis.call('HDEL', KEYS[1], 'progress:beside')
  end
end
return 1
