-- KEYS: a tag's set, its four sets of members set aside. ARGV: how long one of those is filled
-- (ms), members whose keys seem to be gone.
-- The members leave the tag's set and still belong to the tag (`detach_tag.lua`): one may have
-- joined before its key is set.
-- Returns how many were set aside.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local aside = KEYS[2 + math.floor(now / tonumber(ARGV[1])) % 4]
local lasts, before = redis.call('PTTL', KEYS[1]), redis.call('PTTL', aside)
local moved = 0
for i = 2, #ARGV do
  if redis.call('SREM', KEYS[1], ARGV[i]) == 1 then
    redis.call('SADD', aside, ARGV[i])
    moved = moved + 1
  end
end
if moved > 0 and lasts == -1 then
  redis.call('PERSIST', aside)
elseif moved > 0 and before ~= -1 then
  redis.call('PEXPIRE', aside, math.max(lasts, before, 3600000))
end
return moved
