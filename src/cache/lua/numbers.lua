-- KEYS: the sequence. ARGV: how many numbers.
-- Returns the first of them.
return draw_numbers(KEYS[1], tonumber(ARGV[1]))
