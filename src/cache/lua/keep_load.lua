-- KEYS: the claim, the waiting place, the lease. ARGV: token, duration (ms). Renews what the token
-- holds. A waiter for the same load need not load while the lease is valid. A dash marks this: the
-- load may end before the waiter asks again.
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
