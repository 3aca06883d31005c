-- KEYS: the sequence. It must not be lower than leases and generations on other servers: it
-- continues from the clock, as a new one does.
local now = clock_micros()
if (current_number(KEYS[1]) or 0) < now then
  set_number(KEYS[1], now)
end
return 1
