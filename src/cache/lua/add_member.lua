-- KEYS: a tag's set. ARGV: the key to add, unit, millis of the set.
local refused = tag_member(KEYS[1], ARGV[1], ARGV[2], ARGV[3])
if refused then
  return refused
end
return 1
