-- Return how long jobs have waited, for metrics. Changes nothing.
--
-- KEYS[1] -> intake list
-- ARGV[1] -> key prefix
--
-- Returns {length, fingerprint, age}:
--   length -> entries of the intake list
--   fingerprint -> digest of its oldest entry, or '' if it is empty
--   age -> longest wait in ms among the next jobs of the ready lists, or -1 if they are empty; a job waits since its
--          push, since it was due, or since its last start
local function fingerprint(raw) return redis.sha1hex(#raw .. string.sub(raw, 1, 500) .. string.sub(raw, -500)) end

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
return { redis.call('LLEN', KEYS[1]), raw and fingerprint(raw) or '', waited }
