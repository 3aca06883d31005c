-- KEYS: a tag's set, its generation. ARGV: the key, sequence at the grant, unit, millis of the set.
-- Returns 1, or 0 if the tag was invalidated since the grant.
local refused = tag_member(KEYS[1], ARGV[1], ARGV[3], ARGV[4])
if refused then
  return refused
end
local generation = redis.call('GET', KEYS[2])
if generation and tonumber(generation) > tonumber(ARGV[2]) then
  return 0
end
return 1
