-- KEYS: the key, its lease, then each tag's set and its generation. ARGV: token, sequence at the
-- grant, value, unit, millis of the key, millis of the sets.
-- Returns 1, or 0 if the key or a tag was invalidated since the grant, or the lease ran out.
if text_of(KEYS[2]) ~= ARGV[1] then
  return 0
end
for i = 4, #KEYS, 2 do
  if is_invalidated(KEYS[i], ARGV[2]) then
    redis.call('UNLINK', KEYS[2])
    return 0
  end
end
for i = 3, #KEYS, 2 do
  local refused = tag_member(KEYS[i], KEYS[1], ARGV[4], ARGV[6])
  if refused then
    redis.call('UNLINK', KEYS[2])
    return refused
  end
end
set_value(KEYS[1], ARGV[3], ARGV[4], ARGV[5])
redis.call('UNLINK', KEYS[2])
return 1
