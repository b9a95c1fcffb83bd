-- Queue a job under a given id. A repeated call with the same id does nothing.
--
-- KEYS[1] -> intake list
-- ARGV[1] -> key prefix
-- ARGV[2] -> job id
-- ARGV[3] -> job as pushed (JSON)
-- ARGV[4] -> priority: high, normal or low
-- ARGV[5] -> earliest start in ms since 1970, by the clock of Redis
-- ARGV[6] -> digest of URL and path if equal jobs are to be merged, else ''
--
-- Returns OK, DUP (the id is known), or FOLLOWS (an equal job is queued or running; both jobs end together).
-- Error BUSY: the texts of the jobs that have not ended would exceed WAITING_BYTES.
local id, raw, priority, due, digest = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]) + ahead, ARGV[6]
if redis.call('EXISTS', job_key(id)) == 1 then return 'DUP' end
expect_own_types()
expect_end_types()
if exceeds_waiting_bytes(#raw) then return redis.error_reply('BUSY the queue holds as many bytes of waiting jobs as it may (1 GiB)') end
redis.call('HSET', job_key(id), 'raw', raw, 'size', #raw, 'state', 'queued', 'priority', priority, 'created', now, 'counted', 1)
count('pushed')
local leader = digest ~= '' and follow(id, digest)
if leader then
  add_event('job_queued', id, 'priority', priority, 'leader', leader)
  return 'FOLLOWS'
end
if due > now then
  delay(id, due)
  add_event('job_queued', id, 'priority', priority, 'due', ARGV[5])
else
  enqueue(id, priority, false)
  add_event('job_queued', id, 'priority', priority)
end
wake()
return 'OK'
