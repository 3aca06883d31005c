-- KEYS: the checkpoints. ARGV: our field, the number that it must hold, the next, our low
-- watermark.
-- Runs after the commands of a batch. Returns 1, or 0 if the number is another one: Redis lost
-- writes. Then nothing is written that would hide it.
local text = redis.call('HGET', KEYS[1], ARGV[1])
local number, low, at = string.match(text or '', '^(%d+):(%d+):(%d+)$')
if number ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3] .. ':' .. ARGV[4] .. ':' .. at)
return 1
