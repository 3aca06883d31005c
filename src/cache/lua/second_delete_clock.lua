-- Second deletes have a clock of their own. It is Redis' clock, but while some are scheduled, it
-- continues from its last time when Redis' clock is set. Workers look several times a second: a
-- minute without a look is a clock that was set ahead, or nobody was there to do any.
-- A side key holds its last time and by how much it is ahead, `<last>:<ahead>`, in milliseconds.
-- Workers of earlier versions use Redis' clock itself, which is the same until that is set.
local LONGEST_STEP = 60000

-- Returns the time in milliseconds, and remembers it. Without second deletes it begins anew.
local function lasting_time(set, clock)
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local held = redis.call('EXISTS', set) == 1 and text_of(clock) or ''
  local last, before = string.match(held, '^(%d+):(%-?%d+)$')
  local ahead = 0
  -- A longer number came from another program.
  if last and #last <= 13 and #before <= 13 then
    ahead = tonumber(before)
    local passed = now + ahead - tonumber(last)
    if passed < 0 or passed > LONGEST_STEP then
      ahead = ahead - passed
    end
  end
  now = now + ahead
  redis.call('SET', clock, string.format('%.0f:%.0f', now, ahead))
  return now
end
