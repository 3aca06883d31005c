-- KEYS: a tag's set, its four sets of members set aside. ARGV: how long one of those is filled
-- (ms), members whose keys seem to be gone.
-- The members leave the tag's set and still belong to the tag (`detach_tag.lua`): one may have
-- joined before its key is set.
-- Returns how many were set aside.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local aside = KEYS[2 + math.floor(now / tonumber(ARGV[1])) % 4]
local lasts, before = redis.call('PTTL', KEYS[1]), redis.call('PTTL', aside)
-- Invalidations may have removed some meanwhile.
local moved = {}
for first = 2, #ARGV, 1000 do
  local last = math.min(first + 999, #ARGV)
  for i, is_member in ipairs(redis.call('SMISMEMBER', KEYS[1], unpack(ARGV, first, last))) do
    if is_member == 1 then
      moved[#moved + 1] = ARGV[first + i - 1]
    end
  end
end
-- A member is in one of the sets at any step, also if Redis refuses the next one.
for first = 1, #moved, 1000 do
  redis.call('SADD', aside, unpack(moved, first, math.min(first + 999, #moved)))
end
if #moved > 0 and lasts == -1 then
  redis.call('PERSIST', aside)
elseif #moved > 0 and before ~= -1 then
  redis.call('PEXPIRE', aside, math.max(lasts, before, 3600000))
end
for first = 1, #moved, 1000 do
  redis.call('SREM', KEYS[1], unpack(moved, first, math.min(first + 999, #moved)))
end
return #moved
