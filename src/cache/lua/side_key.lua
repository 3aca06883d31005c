-- The name of the side key of `kind` for a key; `side_keys.rs` has the same rule.
local function side_key(kind, key)
  if string.find(key, '}', 1, true) then
    return 'unstale:' .. kind .. ':' .. key
  end
  return 'unstale:' .. kind .. '/{' .. key .. '}'
end
