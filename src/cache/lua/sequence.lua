-- The sequence gives numbers that only rise. They keep up with the clock in microseconds, so a
-- promoted replica that lacks the last steps issues none twice. A number below this one (the year
-- 2001) came from another program.
local FIRST_NUMBER = 1000000000000000

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

-- Returns whether an error of INCR is about the key's value.
local function is_of_value(err)
  return string.find(err, 'WRONGTYPE', 1, true) or string.find(err, 'not an integer', 1, true) or string.find(err, 'overflow', 1, true)
end
