-- KEYS: a tag's set, its four sets of members set aside, the list of sets with such members.
-- ARGV: how long one of the four is filled (ms), about how many members, any cursor.
-- The second look. A member whose key or lease exists by now returns to the tag's set, for as long
-- as that set had. The other members are dropped.
-- Returns 1 if more may be due, else 0.
local time = redis.call('TIME')
local filled = math.floor((tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)) / tonumber(ARGV[1]))

for age = 2, 3 do
  local aside = KEYS[2 + (filled - age) % 4]
  local lasts = redis.call('PTTL', aside)
  local members = lasts == -2 and {} or any_members(aside, ARGV[3], tonumber(ARGV[2]))
  if #members > 0 then
    local back = {}
    for _, member in ipairs(members) do
      if redis.pcall('EXISTS', member) ~= 0 or redis.pcall('EXISTS', side_key('lease', member)) ~= 0 then
        back[#back + 1] = member
      end
    end
    if #back > 0 then
      local before = redis.call('PTTL', KEYS[1])
      for first = 1, #back, 1000 do
        redis.call('SADD', KEYS[1], unpack(back, first, math.min(first + 999, #back)))
      end
      if lasts == -1 then
        redis.call('PERSIST', KEYS[1])
      elseif before == -2 then
        redis.call('PEXPIRE', KEYS[1], lasts)
      elseif before >= 0 then
        -- The set may be new, for members with shorter lives.
        redis.call('PEXPIRE', KEYS[1], lasts, 'GT')
      end
    end
    -- Last, so that a member is in one of the sets if Redis refuses a step.
    for first = 1, #members, 1000 do
      redis.call('SREM', aside, unpack(members, first, math.min(first + 999, #members)))
    end
    return 1
  end
end
if redis.call('EXISTS', KEYS[2], KEYS[3], KEYS[4], KEYS[5]) == 0 then
  redis.call('SREM', KEYS[6], KEYS[1])
end
return 0
