-- KEYS: the marks. ARGV: a command's field, how far back lies what it applies.
write(KEYS[1], ARGV[1], 0, ARGV[2], clock())
return 1
