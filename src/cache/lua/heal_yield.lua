-- KEYS: the checkpoints. ARGV: the lock's field, a worker.
-- Ends the worker's turn to heal, if it has it, and notes that the heal did not kill it. Returns 1.
local token = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^(%w+):')
if token == ARGV[2] then
  redis.call('HDEL', KEYS[1], ARGV[1])
end
write(KEYS[1], 'survived:' .. ARGV[2], 0, NO_BOUND, clock())
return 1
