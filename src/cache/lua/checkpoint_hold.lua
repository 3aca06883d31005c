-- KEYS: the checkpoints. ARGV: a command's field, its low watermark, the same as an offset or
-- nothing.
write(KEYS[1], ARGV[1], 0, ARGV[2], clock(), ARGV[3])
return 1
