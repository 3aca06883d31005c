-- KEYS: a set. ARGV: the cursor, about how many members.
-- Returns the next cursor and some members, as SSCAN does, but few members if they are long.
local members, cursor = some_members(KEYS[1], ARGV[1], 1, tonumber(ARGV[2]), SLICE_BYTES)
return { cursor, members }
