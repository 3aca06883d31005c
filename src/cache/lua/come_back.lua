-- KEYS: one of a tag's sets of members set aside, the tag's set. ARGV: how many return, how many
-- are dropped, their names.
-- Those whose keys exist are members again. An invalidation may have removed some meanwhile.
local lasts = redis.call('PTTL', KEYS[1])
local left, back = {}, {}
for first = 3, #ARGV, 1000 do
  local last = math.min(first + 999, #ARGV)
  for i, is_member in ipairs(redis.call('SMISMEMBER', KEYS[1], unpack(ARGV, first, last))) do
    local place = first + i - 1
    if is_member == 1 then
      left[#left + 1] = ARGV[place]
      if place - 2 <= tonumber(ARGV[1]) then
        back[#back + 1] = ARGV[place]
      end
    end
  end
end
-- A member is in one of the sets at any step, also if Redis refuses the next one.
if #back > 0 then
  local before = redis.call('PTTL', KEYS[2])
  for first = 1, #back, 1000 do
    redis.call('SADD', KEYS[2], unpack(back, first, math.min(first + 999, #back)))
  end
  if lasts == -1 then
    redis.call('PERSIST', KEYS[2])
  elseif before == -2 and lasts >= 0 then
    redis.call('PEXPIRE', KEYS[2], lasts)
  elseif before >= 0 and lasts >= 0 then
    -- The set may be new, for members with shorter lives.
    redis.call('PEXPIRE', KEYS[2], lasts, 'GT')
  end
end
for first = 1, #left, 1000 do
  redis.call('SREM', KEYS[1], unpack(left, first, math.min(first + 999, #left)))
end
return #back
