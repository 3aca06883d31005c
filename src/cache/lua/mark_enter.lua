-- KEYS: the marks. ARGV: our field, the least and the greatest number that it may hold (empty: we remember none), Redis' clock when we last moved it on,
-- the next number, how far back lies what is not applied, how old the newest mark of a worker may be (ms) for one who remembers nothing.
-- Takes up, or takes up again, our field. Where Redis may have gone back that is written down instead, for whoever heals; it stays until that is done.
-- Returns 1, or 2 where somebody is to heal; then Redis' clock and all fields.
local now = clock()
local fields = redis.call('HGETALL', KEYS[1])
local held, newest, healed, wanted
for i = 1, #fields, 2 do
  local field, value = fields[i], fields[i + 1]
  local number, _, at = read(value)
  if field == 'wanted' then
    wanted = true
  elseif field == 'heal' then
    healed = tonumber(string.match(value, '^(%d+):'))
  elseif number and not string.find(field, ':', 1, true) then
    newest = math.max(newest or 0, at)
    if field == ARGV[1] then
      held = number
    end
  end
end
if not wanted then
  local good
  if ARGV[2] ~= '' then
    good = (held and held >= tonumber(ARGV[2]) and held <= tonumber(ARGV[3])) or (healed and healed > tonumber(ARGV[4]))
  else
    good = newest and math.abs(now - newest) <= tonumber(ARGV[7])
  end
  if good then
    write(KEYS[1], ARGV[1], ARGV[5], ARGV[6], now)
    return { 1, now, fields }
  end
  redis.call('HSET', KEYS[1], 'wanted', string.format('%.0f', now))
end
return { 2, now, fields }
