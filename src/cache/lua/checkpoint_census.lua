-- KEYS: the checkpoints. ARGV: our field, maximum age of a living worker's checkpoint (ms), our
-- count.
-- Our worker ends. The next worker compares the count, unless another one lives that consumes. One
-- with `ended:<id>` has stopped consuming.
-- Returns 1.
local now = clock()
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local other, _, at = read(fields[i + 1])
  local lives = other and not string.find(fields[i], ':', 1, true) and math.abs(now - at) <= tonumber(ARGV[2])
  if lives and fields[i] ~= ARGV[1] and redis.call('HEXISTS', KEYS[1], 'ended:' .. fields[i]) == 0 then
    return 1
  end
end
redis.call('HSET', KEYS[1], 'census', ARGV[3])
return 1
