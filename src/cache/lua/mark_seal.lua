-- KEYS: the marks. ARGV: our field, the number that it must hold, the next, how far back lies what is not applied.
-- Stands behind the commands of a batch. Returns 1, or 0 where the number is another one: Redis went back, and nothing is written that would hide it.
local mark = redis.call('HGET', KEYS[1], ARGV[1])
local number, low, at = string.match(mark or '', '^(%d+):(%d+):(%d+)$')
if number ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3] .. ':' .. ARGV[4] .. ':' .. at)
return 1
