-- KEYS: the checkpoints. ARGV: the healing worker, the number that the lock must hold, the next
-- number of its own field, its low watermark, the record's start (Redis' clock, ms) and rest, or
-- nothing twice, the low watermark as an offset, the record's details, then changes.
-- Ends a heal. Returns 1 and Redis' clock, or 0 if another has the lock or the lock went back: then
-- all is to be done again.
local token, number = string.match(redis.call('HGET', KEYS[1], 'lock') or '', '^(%w+):(%d+):%d+$')
local now = clock()
if token ~= ARGV[1] or number ~= ARGV[2] then
  return { 0, now }
end
if ARGV[5] ~= '' then
  redis.call('HSET', KEYS[1], 'heal', string.format('%s:%.0f:%s', ARGV[5], now, ARGV[6]), 'heal:details', ARGV[8])
end
write(KEYS[1], ARGV[1], ARGV[3], ARGV[4], now, ARGV[7])
local current = identity()
if current ~= '' then
  redis.call('HSET', KEYS[1], 'server', current)
end
change(KEYS[1], 9)
redis.call('HDEL', KEYS[1], 'wanted', 'why', 'lock', 'progress')
return { 1, now }
