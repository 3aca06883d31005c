-- KEYS: a detached set, the tag's record of drains. ARGV: the number of the drain. The keys of all
-- members are gone.
-- Returns how many drains of the tag are left.
redis.call('UNLINK', KEYS[1])
redis.call('SREM', KEYS[2], ARGV[1])
return redis.call('SCARD', KEYS[2])
