-- KEYS: the checkpoints. ARGV: the healing worker, then changes that note the end, or none if it
-- was not reached.
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
