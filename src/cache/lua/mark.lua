-- A field of a hash of marks is `<number>:<low>:<at>`: a count that only its owner moves on, the earliest arrival of anything that it has not
-- applied yet, and Redis' clock when it last said so; both in milliseconds. Other fields: `wanted`, `lock`, `heal`, and `<command>:<id>`, which are
-- shaped alike and count nothing.
local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function read(mark)
  local number, low, at = string.match(mark or '', '^(%d+):(%d+):(%d+)$')
  return number and tonumber(number), low, at and tonumber(at)
end

local function write(marks, field, number, low, at)
  redis.call('HSET', marks, field, string.format('%s:%s:%.0f', number, low, at))
end
