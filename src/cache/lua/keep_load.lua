-- KEYS: who loads the key, who loads it next, its lease. ARGV: token, for how long (ms). Keeps what is the token's.
-- Who waits to do the same is covered while the lease is valid, and told so by a dash: the load may be over before it asks again.
local token = ARGV[1]
if text_of(KEYS[1]) == token then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
if text_of(KEYS[3]) == token then
  redis.call('PEXPIRE', KEYS[3], ARGV[2])
  local next = text_of(KEYS[2])
  if next and string.sub(next, 1, 16) == string.sub(token, 1, 16) and string.sub(next, 18, 33) ~= string.sub(token, 18, 33) then
    redis.call('SET', KEYS[2], '-' .. token, 'PX', ARGV[2])
  end
end
