-- KEYS: the hash of reports. ARGV: our field, our report (empty: remove it), how long a report
-- counts (ms).
-- Removes reports that no longer count. Returns name, age (ms) and text of each other report.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local counts_ms = tonumber(ARGV[3])
local fields = redis.call('HGETALL', KEYS[1])
local others = {}
for i = 1, #fields, 2 do
  local at, text = string.match(fields[i + 1], '^(%d+) (.*)$')
  local age = at and now - tonumber(at)
  if not age or math.abs(age) > counts_ms then
    redis.call('HDEL', KEYS[1], fields[i])
  elseif fields[i] ~= ARGV[1] then
    others[#others + 1] = fields[i]
    others[#others + 1] = string.format('%.0f', math.max(age, 0))
    others[#others + 1] = text
  end
end
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f ', now) .. ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return others
