-- KEYS: the second deletes of a queue, the lock of the worker that does them, their clock. ARGV:
-- maximum number, token, duration of the lock (ms), the longest delay of any rule and a reserve
-- (ms).
-- Returns what is due, each target followed by its time, or nothing while another worker has the
-- lock. A time beyond the longest delay is wrong, and due now: the clock was lost, or a worker of
-- an earlier version scheduled it before Redis' clock was set back.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {}
end
local now, most = lasting_time(KEYS[1], KEYS[3]), tonumber(ARGV[1])
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'WITHSCORES', 'LIMIT', 0, most)
if #due < most * 2 then
  local beyond = string.format('(%.0f', now + tonumber(ARGV[4]))
  local wrong = redis.call('ZRANGEBYSCORE', KEYS[1], beyond, '+inf', 'WITHSCORES', 'LIMIT', 0, most - #due / 2)
  for _, text in ipairs(wrong) do
    due[#due + 1] = text
  end
end
if #due == 0 then
  return due
end
local holder = text_of(KEYS[2])
if holder and holder ~= ARGV[2] then
  -- No lock lasts longer, or lacks a TTL: the server's clock was set back, or another program wrote
  -- it. (Without tags, our user may lack PTTL.)
  local left = redis.pcall('PTTL', KEYS[2])
  if left ~= -1 and not (type(left) == 'number' and left > tonumber(ARGV[3])) then
    return {}
  end
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return due
