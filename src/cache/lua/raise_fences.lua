-- KEYS: fences. ARGV: how long they are kept (ms), then each one's mark.
-- They are raised before their keys are deleted: an older write in between is refused, a newer one is deleted, and a miss is right.
for i, fence in ipairs(KEYS) do
  raise_fence(fence, ARGV[i + 1], ARGV[1])
end
return #KEYS
