-- KEYS: the sequence. ARGV: how many numbers.
-- Returns the first of them, all of them above any before, and above the clock.
local first = math.max(standing_number(KEYS[1]) or 0, clock_micros()) + 1
set_number(KEYS[1], first + tonumber(ARGV[1]) - 1)
return string.format('%.0f', first)
