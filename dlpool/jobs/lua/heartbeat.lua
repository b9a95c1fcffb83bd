-- Renew the leases of a supervisor's jobs and its registration.
--
-- KEYS[1] -> intake list
-- ARGV[1] -> key prefix
-- ARGV[2] -> supervisor id (sid)
-- ARGV[3] -> lease in ms
-- ARGV[4] -> status of the supervisor (JSON), or '' to renew only the named jobs
-- then for each job: id, fence, progress (JSON, or '' to keep the stored one)
--
-- Returns {orphans, {host, ms, ...}, reply for each job...}:
--   orphans -> number of jobs that Redis assigns to this supervisor and that the call did not name; 0 without a status
--   {host, ms, ...} -> hosts that must not be contacted, each with the remaining ms; empty without a status
--   reply -> OK, LOST (the job has another fence or has ended), or the job's flag: cancel or pause
local sid, lease, info = ARGV[2], tonumber(ARGV[3]), ARGV[4]
local held_key = prefix .. 'held:' .. sid
local reply = { 0, {} }
local held = 0
for index = 5, #ARGV, 3 do
  local id, fence, progress = ARGV[index], ARGV[index + 1], ARGV[index + 2]
  local state, owner, present, flag, lease_expired =
    unpack(redis.pcall('HMGET', job_key(id), 'state', 'owner', 'fence', 'flag', 'lease_expired'))
  if state == 'running' and owner == sid and present == fence then
    redis.call('ZADD', prefix .. 'leases', now + lease, id)
    redis.call('SADD', held_key, id)
    if lease_expired then redis.call('HDEL', job_key(id), 'lease_expired') end
    if progress ~= '' then redis.call('HSET', job_key(id), 'progress', progress) end
    held = held + 1
    reply[#reply + 1] = flag or 'OK'
  else
    reply[#reply + 1] = 'LOST'
  end
end
if info ~= '' then
  redis.call('ZADD', prefix .. 'supervisors', now + lease, sid)
  redis.call('SET', prefix .. 'supervisor:' .. sid, info, 'PX', lease + LOST_MS)
  redis.call('PEXPIRE', prefix .. 'mail:' .. sid, MAIL_TTL_MS)
  reply[1] = redis.call('SCARD', held_key) - held
  local holds = redis.call('ZRANGEBYSCORE', prefix .. 'holds', now, '+inf', 'WITHSCORES')
  for index = 1, #holds, 2 do
    reply[2][index], reply[2][index + 1] = holds[index], holds[index + 1] - now
  end
end
return reply
