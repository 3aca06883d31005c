-- KEYS: the sequence. ARGV: how many numbers.
-- Returns the first of them. All are above any previous one, and above the clock.
local first = math.max(current_number(KEYS[1]) or 0, clock_micros()) + 1
set_number(KEYS[1], first + tonumber(ARGV[1]) - 1)
return string.format('%.0f', first)
