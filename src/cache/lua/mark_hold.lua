-- KEYS: the marks. ARGV: a command's field, how far back lies what it applies, the same as an
-- offset or nothing.
write(KEYS[1], ARGV[1], 0, ARGV[2], clock(), ARGV[3])
return 1
