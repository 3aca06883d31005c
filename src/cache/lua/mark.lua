-- A field of a hash of marks is `<number>:<low>:<at>`: a count that only its owner moves on, the earliest arrival of anything that it has not
-- applied yet, and Redis' clock when it last said so; both in milliseconds. Beside it,
-- `offset:<field>` holds the same arrival as an offset of the history. Fields that count nothing
-- are shaped alike: `<command>:<id>`, `stopped:<id>` of a worker that has ended, and
-- `survived:<id>` of one whose heal did not come to its end, though the worker did not die of it.
-- Other fields: `broker`, and `broker:<id>` for that of a worker, `census`,
-- `ended:<id>` of a worker that consumes nothing any more, `history_born`,
-- `retry_step:<delay>` for when workers last used that retry step,
-- `server` (see below), `wanted` and `why`, `lock`, `progress`, `heal`,
-- `heal:details`, `healed:<ms>:<id>` for the rules of a heal, and what heals beside live workers
-- need.
local NO_BOUND = '9007199254740991'

local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function read(mark)
  local number, low, at = string.match(mark or '', '^(%d+):(%d+):(%d+)$')
  return number and tonumber(number), low, at and tonumber(at)
end

local function write(marks, field, number, low, at, offset)
  redis.call('HSET', marks, field, string.format('%s:%s:%.0f', number, low, at))
  if offset and offset ~= '' then
    redis.call('HSET', marks, 'offset:' .. field, offset)
  end
end

-- Returns the identity of the server, `<run id>:<replication id>`, and the replication id before
-- it. A restart changes the former, a promotion the latter. Nothing without the right to INFO.
local function identity()
  local info = redis.pcall('INFO', 'server', 'replication')
  if type(info) ~= 'string' then
    return '', ''
  end
  local run, id = string.match(info, 'run_id:(%x+)'), string.match(info, 'master_replid:(%x+)')
  if not run or not id then
    return '', ''
  end
  return run .. ':' .. id, string.match(info, 'master_replid2:(%x+)') or ''
end

-- Returns whether the server that wrote `stored` has served all the time. The first replica, and an hour
-- without any, change the replication id and clear the one before it.
local function is_same(stored, current, before)
  if stored == current then
    return true
  end
  local run_stored, run_current = string.match(stored, '^(%x+):'), string.match(current, '^(%x+):')
  return run_stored == run_current and string.match(before, '^0+$') ~= nil
end

-- Changes fields: from ARGV[first] on, each is named by three arguments. They are the field, the
-- text that it must hold or nothing, and its new text or nothing, which removes it.
local function change(marks, first)
  for i = first, #ARGV, 3 do
    if ARGV[i + 1] == '' or redis.call('HGET', marks, ARGV[i]) == ARGV[i + 1] then
      if ARGV[i + 2] == '' then
        redis.call('HDEL', marks, ARGV[i])
      else
        redis.call('HSET', marks, ARGV[i], ARGV[i + 2])
      end
    end
  end
end
