-- KEYS: the checkpoints. ARGV: our field, the least and the greatest number that it may hold
-- (empty: unknown), Redis' clock at our last update, the next number, our low watermark, maximum
-- age of the newest checkpoint (ms) for a worker without memory and a server without identity, the
-- low watermark as an offset, `ask` if another hash may show that a slot has moved, then the
-- identities of servers whose slots have moved.
-- Enters our field. If Redis may have lost writes, it requests a heal instead; the request stays
-- until a heal is done.
-- Returns 1, or 2 if a heal is due, or 3 (`ask`) if another server wrote the checkpoints; then
-- Redis' clock, all fields as they were, and the server's identity.
local now = clock()
local fields = redis.call('HGETALL', KEYS[1])
local current, before = identity()
local held, newest, heal, ahead, wanted, stored
for i = 1, #fields, 2 do
  local field, value = fields[i], fields[i + 1]
  local number, _, at = read(value)
  if field == 'wanted' then
    wanted = true
  elseif field == 'server' then
    stored = value
  elseif field == 'heal' then
    heal = value
  elseif field == 'heal:ahead' then
    ahead = value
  elseif number and not string.find(field, ':', 1, true) then
    newest = math.max(newest or 0, at)
    if field == ARGV[1] then
      held = number
    end
  end
end
local healed = heal_began(KEYS[1], heal, ahead, now)
if not wanted then
  local known = stored and current ~= ''
  local same = known and is_same(stored, current, before)
  for i = 10, #ARGV do
    same = same or (known and ARGV[i] == stored)
  end
  local why
  if ARGV[2] ~= '' and not (held and held >= tonumber(ARGV[2]) and held <= tonumber(ARGV[3])) and not (healed and healed > tonumber(ARGV[4])) then
    why = 'lost'
  elseif known and not same then
    if ARGV[9] == 'ask' then
      return { 3, now, fields, current }
    end
    why = 'replaced'
  elseif ARGV[2] == '' and not known and not (newest and math.abs(now - newest) <= tonumber(ARGV[7])) then
    why = 'unknown'
  end
  if not why then
    write(KEYS[1], ARGV[1], ARGV[5], ARGV[6], now, ARGV[8])
    if current ~= '' then
      redis.call('HSET', KEYS[1], 'server', current)
    end
    return { 1, now, fields, current }
  end
  redis.call('HSET', KEYS[1], 'wanted', string.format('%.0f', now), 'why', why)
end
return { 2, now, redis.call('HGETALL', KEYS[1]), current }
