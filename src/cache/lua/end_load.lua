-- KEYS: who loads the key, who loads it next, its lease. ARGV: token. Gives back what is the token's.
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then
    redis.call('UNLINK', key)
  end
end
