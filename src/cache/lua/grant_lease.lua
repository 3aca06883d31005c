-- KEYS: the key's lease, the sequence. ARGV: token, duration (ms).
-- Returns the sequence, or nothing while another holds the lease.
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  -- No lease is that long: the server's clock was set back. (Without tags, our user may lack PTTL.)
  local left = redis.pcall('PTTL', KEYS[1])
  if type(left) == 'number' and left > 360000 then
    redis.call('SET', KEYS[1], redis.call('GET', KEYS[1]), 'XX', 'PX', ARGV[2])
  end
  return false
end
return redis.call('GET', KEYS[2]) or '0'
