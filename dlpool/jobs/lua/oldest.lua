-- What waits longest, for figures: nothing is changed.
-- KEYS  1 intake
-- ARGV  1 prefix
-- Returns {length of the intake, what tells its oldest job from others or '', ms that the longest of those jobs waits
--         that are the next of the ready lists, or -1: since its push, since it was due, or since it began last}
local function mark(raw) return redis.sha1hex(#raw .. string.sub(raw, 1, 500) .. string.sub(raw, -500)) end

local raw = redis.call('LRANGE', KEYS[1], -1, -1)[1]
local waited = -1
for _, name in ipairs({ 'limited', 'high', 'normal', 'low' }) do
  local id = redis.call('LRANGE', ready_key(name), -1, -1)[1]
  local since = 0
  for _, time in ipairs(id and redis.pcall('HMGET', job_key(id), 'created', 'due', 'started') or {}) do
    since = math.max(since, tonumber(time) or 0)
  end
  if since > 0 then waited = math.max(waited, now - since) end
end
return { redis.call('LLEN', KEYS[1]), raw and mark(raw) or '', waited }
