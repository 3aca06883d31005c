-- KEYS: the key's lease, the sequence. ARGV: token, duration (ms).
-- Returns the sequence, or nothing while another holds the lease.
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  -- No lease is that long, or lacks a TTL: the server's clock was set back, or another program
  -- wrote it. (Without tags, our user may lack PTTL.)
  local left = redis.pcall('PTTL', KEYS[1])
  if left == -1 or (type(left) == 'number' and left > 360000) then
    redis.call('SET', KEYS[1], text_of(KEYS[1]) or '', 'XX', 'PX', ARGV[2])
  end
  return false
end
-- A fill with 0 is refused if one of its tags has a generation.
local since = text_of(KEYS[2]) or ''
return number_of(since) and since or '0'
