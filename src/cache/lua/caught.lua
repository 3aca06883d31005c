-- Returns what `pcall` has caught as an error. Redis 7.0 raises a missing permission as a text.
local function caught(err)
  return type(err) == 'table' and err or { err = tostring(err) }
end
