-- Returns the text of a key that readers may write to. Returns nothing if the key is missing, and
-- '' if it has another type.
local function text_of(key)
  local held = redis.pcall('GET', key)
  if type(held) ~= 'table' then
    return held or nil
  end
  if not string.find(held.err, 'WRONGTYPE', 1, true) then
    error(held)
  end
  return ''
end

-- The sequence follows the clock in microseconds. A number from this one on (the year 2112) came
-- from another program, and doubles would soon be inexact.
local LAST_NUMBER = 4503599627370496

-- Returns the number of the sequence that a text holds, or nothing if another program wrote it.
local function number_of(text)
  local number = #text <= 16 and string.match(text, '^%d+$') and tonumber(text)
  return number and number < LAST_NUMBER and number or nil
end
