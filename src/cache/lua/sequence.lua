-- The sequence gives numbers that only rise. They keep up with the clock in microseconds: a
-- promoted replica that lacks the last steps issues none twice, nor does a server whose sequence
-- was lost, or set back by another program.

local function clock_micros()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Returns the current number of the sequence, or nil if it is missing or not one of ours.
local function current_number(key)
  local held = redis.pcall('GET', key)
  return type(held) == 'string' and number_of(held) or nil
end

-- Sets the sequence, even if a key of another type has its name.
local function set_number(key, number)
  redis.call('SET', key, string.format('%.0f', number))
end

-- Draws consecutive numbers, and returns the first as text. All are above any previous one, and
-- above the clock.
local function draw_numbers(key, count)
  local first = math.max(current_number(key) or 0, clock_micros()) + 1
  set_number(key, first + count - 1)
  return string.format('%.0f', first)
end
