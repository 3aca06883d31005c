-- KEYS: the checkpoints. ARGV: our field, the least and the greatest number that it may hold, our
-- low watermark, the same as an offset, 1 if no unapplied event is ours any more, maximum age of a
-- living worker's checkpoint (ms).
-- Our worker ends. Unapplied events stay covered for the next worker; a living worker covers those
-- that wait in the queue anyway.
-- Returns 1, or 0 if the number is another one: Redis lost writes, and the next worker heals.
local now = clock()
local number = read(redis.call('HGET', KEYS[1], ARGV[1]))
if not number or number < tonumber(ARGV[2]) or number > tonumber(ARGV[3]) then
  redis.call('HSET', KEYS[1], 'wanted', string.format('%.0f', now), 'why', 'lost')
  return 0
end
local lives
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local other, _, at = read(fields[i + 1])
  if other and fields[i] ~= ARGV[1] and not string.find(fields[i], ':', 1, true) and math.abs(now - at) <= tonumber(ARGV[7]) then
    lives = true
  end
end
if not (lives and ARGV[6] == '1') then
  write(KEYS[1], 'stopped:' .. ARGV[1], 0, ARGV[4], now, ARGV[5])
end
redis.call('HDEL', KEYS[1], ARGV[1], 'offset:' .. ARGV[1], 'broker:' .. ARGV[1], 'ended:' .. ARGV[1])
return 1
