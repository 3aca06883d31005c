-- KEYS: a tag's four sets of members set aside. ARGV: how long one of them is filled (ms), about
-- how many members, any cursor.
-- Returns which set, from 0 on, is due and some of its members, or nothing if none is.
local time = redis.call('TIME')
local filled = math.floor((tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)) / tonumber(ARGV[1]))
for back = 2, 3 do
  local place = (filled - back) % 4
  local members = any_members(KEYS[1 + place], ARGV[3], tonumber(ARGV[2]))
  if #members > 0 then
    return { place, unpack(members) }
  end
end
return {}
