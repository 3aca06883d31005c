-- The sequence gives numbers that only rise: they keep up with the clock in microseconds, so a replica that became the primary without the last
-- steps hands out none twice. Below this number (the year 2001) somebody else wrote it.
local FIRST_NUMBER = 1000000000000000

local function clock_micros()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- The number that the sequence stands at; nothing where it is missing, or holds what is no number of ours.
local function standing_number(key)
  local held = redis.pcall('GET', key)
  return type(held) == 'string' and number_of(held) or nil
end

-- Sets the sequence, also where a key of another type has its name.
local function set_number(key, number)
  redis.call('SET', key, string.format('%.0f', number))
end

-- Whether an error of INCR is about what the key holds.
local function is_of_value(err)
  return string.find(err, 'WRONGTYPE', 1, true) or string.find(err, 'not an integer', 1, true) or string.find(err, 'overflow', 1, true)
end
