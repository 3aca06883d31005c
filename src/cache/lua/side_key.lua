-- Returns the name of the side key of `kind` for a key; `side_keys.rs` has the same rule.
local function side_key(kind, key)
  if string.find(key, '}', 1, true) then
    return 'unstale:' .. kind .. ':' .. key
  end
  return 'unstale:' .. kind .. '/{' .. key .. '}'
end

-- Returns the name of a set detached from a tag's set, or set aside; `side_keys.rs` has the same
-- rule.
local function detached_key(set, number)
  if string.find(set, '}', 1, true) then
    return 'unstale:drained:' .. set .. ':' .. number
  end
  return 'unstale:drain/{' .. set .. '}:' .. number
end

-- Returns whether a key is one of unstale's own, or may be the set of a tag. Such a member of a
-- tag's set is never deleted; `side_keys.rs` has the same rule.
local function is_own(key, tag_prefix)
  return string.sub(key, 1, 8) == 'unstale:' or (tag_prefix ~= '' and string.sub(key, 1, #tag_prefix) == tag_prefix)
end

-- Maximum length of a key of a rule. `registry/reserved.rs` has the same maximum.
local LONGEST_KEY = 8192
