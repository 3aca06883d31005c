-- KEYS: a fence. ARGV: its lifetime (ms), a version. For a key whose old value stays readable while
-- the new one loads.
return raise_fence(KEYS[1], ARGV[2], ARGV[1])
