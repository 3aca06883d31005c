-- KEYS: one of a tag's sets of members set aside, the tag's set. ARGV: how many return, how many
-- are dropped, their names.
-- Those whose keys exist are members again. An invalidation may have removed some meanwhile.
local lasts = redis.call('PTTL', KEYS[1])
local back = {}
for i = 3, #ARGV do
  if redis.call('SREM', KEYS[1], ARGV[i]) == 1 and i - 2 <= tonumber(ARGV[1]) then
    back[#back + 1] = ARGV[i]
  end
end
if #back > 0 then
  local before = redis.call('PTTL', KEYS[2])
  redis.call('SADD', KEYS[2], unpack(back))
  if lasts == -1 then
    redis.call('PERSIST', KEYS[2])
  elseif before == -2 and lasts >= 0 then
    redis.call('PEXPIRE', KEYS[2], lasts)
  elseif before >= 0 and lasts >= 0 then
    -- The set may be new, for members with shorter lives.
    redis.call('PEXPIRE', KEYS[2], lasts, 'GT')
  end
end
return #back
