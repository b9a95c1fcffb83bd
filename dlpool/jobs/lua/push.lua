-- Put a job into dlpool's own queue. Repeated with the same id it does nothing.
-- KEYS  1 intake
-- ARGV  1 prefix, 2 id, 3 raw job, 4 priority (high, normal, low), 5 due in ms since 1970 by the clock of Redis, 6 digest of url and path, or ''
-- Returns OK, DUP (that id is known already), or FOLLOWS (another job does the same; this one ends with it).
local id, raw, priority, due, digest = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]) + ahead, ARGV[6]
if redis.call('EXISTS', job_key(id)) == 1 then return 'DUP' end
expect_own_types()
expect_end_types()
if is_full_with(#raw) then return redis.error_reply('BUSY the queue holds as many bytes of waiting jobs as it may (1 GiB)') end
redis.call('HSET', job_key(id), 'raw', raw, 'size', #raw, 'state', 'queued', 'priority', priority, 'created', now, 'counted', 1)
count('pushed')
local leader = digest ~= '' and follow(id, digest)
if leader then
  tell('job_queued', id, 'priority', priority, 'leader', leader)
  return 'FOLLOWS'
end
if due > now then
  delay(id, due)
  tell('job_queued', id, 'priority', priority, 'due', ARGV[5])
else
  enqueue(id, priority, false)
  tell('job_queued', id, 'priority', priority)
end
wake()
return 'OK'
