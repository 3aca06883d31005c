-- KEYS: the key, then its tags' sets. ARGV: value, unit, millis of the key, millis of the sets.
-- Returns whether the key existed. A refused tag deletes the key: a value that no tag can
-- invalidate is worse than none. So does a refused value: the old one must not stay readable.
local existed = redis.call('EXISTS', KEYS[1])
for i = 2, #KEYS do
  local done, refused = pcall(tag_member, KEYS[i], KEYS[1], ARGV[2], ARGV[4])
  if refused or not done then
    redis.pcall('UNLINK', KEYS[1])
    return caught(refused)
  end
end
local done, refused = pcall(set_value, KEYS[1], ARGV[1], ARGV[2], ARGV[3])
if not done then
  redis.pcall('UNLINK', KEYS[1])
  return caught(refused)
end
return existed
