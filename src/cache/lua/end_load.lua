-- KEYS: the claim, the waiting place, the lease, the key. ARGV: token, for how long (ms) a waiter
-- for the same load is covered if the key exists; 0 if never.
-- The waiter's invalidation deleted the key, so an existing value is newer. Releases what the token
-- holds.
local token = ARGV[1]
if ARGV[2] ~= '0' and redis.call('EXISTS', KEYS[4]) == 1 then
  local next = text_of(KEYS[2])
  if next and string.sub(next, 1, 16) == string.sub(token, 1, 16) and string.sub(next, 18, 33) ~= string.sub(token, 18, 33) then
    redis.call('SET', KEYS[2], '-' .. token, 'PX', ARGV[2])
  end
end
for i = 1, 3 do
  if text_of(KEYS[i]) == token then
    redis.call('UNLINK', KEYS[i])
  end
end
