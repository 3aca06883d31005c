-- Returns an answer of `redis.pcall` if it is an error.
local function refusal(answer)
  return type(answer) == 'table' and answer.err and answer or nil
end
