-- KEYS: a fence. ARGV: how long it is kept (ms), a mark. For a key whose old value is still to be read while the new one loads.
return raise_fence(KEYS[1], ARGV[2], ARGV[1])
