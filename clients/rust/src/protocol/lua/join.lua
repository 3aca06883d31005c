-- KEYS: a tag's set, its generation. ARGV: the key, sequence at the grant, unit, millis of the set.
-- Returns 1, or 0 if the tag was invalidated since the grant.
local refused = tag_member(KEYS[1], ARGV[1], ARGV[3], ARGV[4])
if refused then
  return refused
end
return is_invalidated(KEYS[2], ARGV[2]) and 0 or 1
