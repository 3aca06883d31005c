-- KEYS: the key's lease. ARGV: token. Only its holder releases a lease.
if text_of(KEYS[1]) == ARGV[1] then
  return redis.call('UNLINK', KEYS[1])
end
return 0
