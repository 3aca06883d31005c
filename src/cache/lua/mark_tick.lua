-- KEYS: the marks. ARGV: our field, the number that it must hold, the next, how far back lies what is not applied, how long the dead are kept (ms).
-- Returns 1, or 2 where somebody is to heal, or 0 where the number is another one; then Redis' clock and, after 1, all fields.
local now = clock()
if redis.call('HEXISTS', KEYS[1], 'wanted') == 1 then
  return { 2, now }
end
local number = read(redis.call('HGET', KEYS[1], ARGV[1]))
if number ~= tonumber(ARGV[2]) then
  return { 0, now }
end
write(KEYS[1], ARGV[1], ARGV[3], ARGV[4], now)
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local _, _, at = read(fields[i + 1])
  if at and now - at > tonumber(ARGV[5]) then
    redis.call('HDEL', KEYS[1], fields[i])
  end
end
return { 1, now, fields }
