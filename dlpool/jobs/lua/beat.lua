-- Say that a supervisor and its jobs live: renew their leases, and hear what has become of them.
-- KEYS  1 intake
-- ARGV  1 prefix, 2 sid, 3 lease ms, 4 what to show of the supervisor (JSON), or '' to ask for the named jobs only,
--       then for each job: id, fence, progress (JSON) or ''
-- Returns {number of jobs that Redis holds for this supervisor and that it did not name,
--         {host, ms for which nobody may ask it, ...} (empty if it only asked), verdict of each job in turn};
--         a verdict is OK, LOST (another fence stands, or it has ended), or the flag that was set (cancel, pause).
local sid, lease, info = ARGV[2], tonumber(ARGV[3]), ARGV[4]
local own = prefix .. 'own:' .. sid
local reply = { 0, {} }
local held = 0
for index = 5, #ARGV, 3 do
  local id, fence, progress = ARGV[index], ARGV[index + 1], ARGV[index + 2]
  local state, owner, present, flag, suspect =
    unpack(redis.pcall('HMGET', job_key(id), 'state', 'owner', 'fence', 'flag', 'suspect'))
  if state == 'running' and owner == sid and present == fence then
    redis.call('ZADD', prefix .. 'leases', now + lease, id)
    redis.call('SADD', own, id)
    if suspect then redis.call('HDEL', job_key(id), 'suspect') end
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
  redis.call('PEXPIRE', prefix .. 'mail:' .. sid, 60000)
  reply[1] = redis.call('SCARD', own) - held
  local holds = redis.call('ZRANGEBYSCORE', prefix .. 'holds', now, '+inf', 'WITHSCORES')
  for index = 1, #holds, 2 do
    reply[2][index], reply[2][index + 1] = holds[index], holds[index + 1] - now
  end
end
return reply
