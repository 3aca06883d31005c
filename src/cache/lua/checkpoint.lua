-- A field of a hash of checkpoints is `<number>:<low>:<at>`. It has a count that only its owner
-- advances, the owner's low watermark, and Redis' clock at its last update; both in milliseconds.
-- Beside it, `offset:<field>` holds the low watermark as an offset of the history. Fields without a
-- count have the same form: `<command>:<id>`, `stopped:<id>` of a worker that has ended, and
-- `survived:<id>` of one that its heal did not kill.
-- Other fields: `acknowledged:<finding>`, `broker`, and `broker:<id>` for that of a worker,
-- `census`, `ended:<id>` of a worker that has stopped consuming, `history_born`, `history_mark`,
-- `lost`, `queue_mark:<queue>`, `retry_step:<delay>` for when workers last used that step, `server`
-- (see below), `wanted` and `why`, `lock`, `progress`, `heal`, `heal:details`, `heal:ahead` (see
-- below), `healed:<ms>:<id>` for the rules of a heal, and those of heals beside live workers.
local NO_BOUND = '9007199254740991'

local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function read(text)
  local number, low, at = string.match(text or '', '^(%d+):(%d+):(%d+)$')
  return number and tonumber(number), low, at and tonumber(at)
end

local function write(hash, field, number, low, at, offset)
  redis.call('HSET', hash, field, string.format('%s:%s:%.0f', number, low, at))
  if offset and offset ~= '' then
    redis.call('HSET', hash, 'offset:' .. field, offset)
  end
end

-- Returns the identity of the server, `<run id>:<replication id>`, and the previous replication id.
-- A restart changes the former, a promotion the latter. Empty without the right to INFO.
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

-- Returns whether the server that wrote `stored` has served all the time. The first replica, and an
-- hour without any, change the replication id and clear the previous one.
local function is_same(stored, current, before)
  if stored == current then
    return true
  end
  local run_stored, run_current = string.match(stored, '^(%x+):'), string.match(current, '^(%x+):')
  return run_stored == run_current and string.match(before, '^0+$') ~= nil
end

-- Returns when the last heal began, or nothing if that is not to be trusted: a time to come was
-- read from a clock that was ahead. `heal:ahead` remembers it, so that it never counts.
local function heal_began(hash, heal, ahead, now)
  local began = string.match(heal or '', '^(%d+):')
  if began and began ~= ahead and tonumber(began) > now then
    redis.call('HSET', hash, 'heal:ahead', began)
    ahead = began
  end
  return began ~= ahead and tonumber(began) or nil
end

-- Changes fields: from ARGV[first] on, each takes three arguments. They are the field, the text
-- that it must hold or nothing, and its new text or nothing, which removes it.
local function change(hash, first)
  for i = first, #ARGV, 3 do
    if ARGV[i + 1] == '' or redis.call('HGET', hash, ARGV[i]) == ARGV[i + 1] then
      if ARGV[i + 2] == '' then
        redis.call('HDEL', hash, ARGV[i])
      else
        redis.call('HSET', hash, ARGV[i], ARGV[i + 2])
      end
    end
  end
end
