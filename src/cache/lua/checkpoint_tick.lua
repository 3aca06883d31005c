-- KEYS: the checkpoints. ARGV: our field, the number that it must hold, the next, our low
-- watermark, how long fields of dead workers are kept (ms), the low watermark as an offset.
-- Returns 1, or 2 if a heal is due, or 0 if the number is another one, or 3 if another server wrote
-- the checkpoints; then Redis' clock and, after 1 and 3, all fields as they were and the server's
-- identity.
-- If our own last update is long ago, we were away or the clock was set ahead. Nobody knows the age
-- of the other fields, which counts anew.
local AWAY_MS = 60000
local now = clock()
if redis.call('HEXISTS', KEYS[1], 'wanted') == 1 then
  return { 2, now }
end
local number, _, before = read(redis.call('HGET', KEYS[1], ARGV[1]))
if number ~= tonumber(ARGV[2]) then
  return { 0, now }
end
write(KEYS[1], ARGV[1], ARGV[3], ARGV[4], now, ARGV[6])
local fields = redis.call('HGETALL', KEYS[1])
local stored, heal, ahead
for i = 1, #fields, 2 do
  local count, low, at = read(fields[i + 1])
  if at and now - at > tonumber(ARGV[5]) and now - before > AWAY_MS then
    write(KEYS[1], fields[i], string.format('%.0f', count), low, now - AWAY_MS)
  elseif at and now - at > tonumber(ARGV[5]) then
    redis.call('HDEL', KEYS[1], fields[i], 'offset:' .. fields[i], 'broker:' .. fields[i], 'ended:' .. fields[i])
  elseif fields[i] == 'server' then
    stored = fields[i + 1]
  elseif fields[i] == 'heal' then
    heal = fields[i + 1]
  elseif fields[i] == 'heal:ahead' then
    ahead = fields[i + 1]
  end
end
heal_began(KEYS[1], heal, ahead, now)
local current, before = identity()
if current ~= '' and stored ~= current then
  if stored and not is_same(stored, current, before) then
    return { 3, now, fields, current }
  end
  redis.call('HSET', KEYS[1], 'server', current)
end
return { 1, now, fields, current }
