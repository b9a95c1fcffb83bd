-- End a running job with the record that clients see, or return it to the queue. An error changes nothing.
--
-- KEYS[1] -> intake list
-- KEYS[2] -> key of the record, or the intake list if there is none
-- ARGV[1] -> key prefix
-- ARGV[2] -> supervisor id (sid)
-- ARGV[3] -> job id
-- ARGV[4] -> fence
-- ARGV[5] -> disposition:
--   success, failed, cancelled -> the job ends
--   retry -> delayed
--   release -> delayed, or to the front of the queue without a delay; the attempt does not count
--   yield -> delayed, and then behind all waiting jobs; the attempt does not count
--   pause -> paused if an operator has asked for it, else as release; the attempt does not count
--   throttle -> delayed until its host may be contacted; the attempt does not count
--   crash -> to the front of the queue; the crash counts
--   follow -> waits for the end of the job with the same digest
--   A job that an operator has asked to pause is paused by each disposition that does not end the job, except follow.
-- ARGV[6] -> delay in ms
-- ARGV[7] -> note (JSON)
-- ARGV[8] -> new priority: the job is queued at the end of its ready list; or ''
-- ARGV[9] -> follow: digest of URL and path, else ''
-- ARGV[10] -> kind of the record: string (SET), hash (HSET), outbox (HSET in the outbox of a Cluster), or '' for none
-- ARGV[11] -> seconds until a string record expires
-- ARGV[12] -> field of a hash or outbox record
-- ARGV[13] -> value of the record
-- ARGV[14] -> host whose slot the job had, or that throttles it; or ''
-- ARGV[15] -> throttle: 1 if its start at the host is reserved, else 0
-- ARGV[16] -> throttle: 1 if it waits for a slot of the host, 0 if only for the delay
--
-- Returns OK, DUP (an earlier call finished the job), FENCED (the job has a newer fence), GONE (the job is deleted),
--   or for follow: FOLLOWS, or LEADS (the job continues).
-- Error BUSY: the outbox holds OUTBOX_MAX records.
local sid, id, fence, disposition, wait = ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local note, digest, host = ARGV[7], ARGV[9], ARGV[14]
local OUTBOX_MAX = 10000
local UNCOUNTED = { release = true, pause = true, throttle = true, yield = true }
local state, owner, present, priority, dedupe, flag =
  unpack(redis.pcall('HMGET', job_key(id), 'state', 'owner', 'fence', 'priority', 'dedupe', 'flag'))
if not state then return 'GONE' end
if present ~= fence then return 'FENCED' end
if state ~= 'running' or owner ~= sid then return 'DUP' end

-- An error in the middle of a script keeps the writes made before it, so everything that can fail is checked first.
if ARGV[10] == 'hash' then
  local kind = redis.call('TYPE', KEYS[2]).ok
  if kind ~= 'hash' and kind ~= 'none' then return redis.error_reply('WRONGTYPE ' .. KEYS[2] .. ' is not a hash') end
end

expect_own_types()
expect_end_types()
redis.call('SCARD', prefix .. 'held:' .. sid)
if ARGV[10] == 'outbox' and redis.call('HLEN', KEYS[2]) >= OUTBOX_MAX then
  return redis.error_reply('BUSY the outbox is full: clients\' records cannot be written')
end

local function write_record()
  if ARGV[10] == 'string' then
    redis.call('SET', KEYS[2], ARGV[13], 'EX', ARGV[11])
  elseif ARGV[10] == 'hash' then
    write_failure(KEYS[2], ARGV[12], ARGV[13])
  elseif ARGV[10] == 'outbox' then
    redis.call('HSET', KEYS[2], ARGV[12], now .. ' ' .. ARGV[13])
  end
end

-- Write the record and end the job together with its followers.
local function end_with_followers(name)
  write_record()
  end_job(id, name, note)
  if not dedupe then return end
  for _, one in ipairs(followers_of(id)) do end_job(one[1], name, note) end
  forget_leader(id, dedupe)
end

if disposition == 'follow' then
  if dedupe or not follow(id, digest) then return 'LEADS' end
  disown(id, sid)
  return 'FOLLOWS'
end

disown(id, sid)
if host ~= '' and disposition ~= 'throttle' then release_next_of(host) end
if ARGV[8] ~= '' then
  priority = ARGV[8]
  redis.call('HSET', job_key(id), 'priority', priority)
end
if disposition == 'success' then
  end_with_followers('succeeded')
elseif disposition == 'failed' then
  end_with_followers('failed')
elseif disposition == 'cancelled' then
  write_record()
  end_job(id, 'cancelled', note)
  free_followers(id)
else
  if note ~= '' then redis.call('HSET', job_key(id), 'note', note) end
  if disposition == 'yield' then
    add_to(job_key(id), 'yields', 1)
    redis.call('HSET', job_key(id), 'yielded', 1)
  end
  if UNCOUNTED[disposition] then add_to(job_key(id), 'attempts', -1) end
  if disposition == 'crash' then add_to(job_key(id), 'crashes', 1) end
  count(disposition)
  if flag == 'pause' then
    pause(id)
    return 'OK'
  end
  if disposition == 'throttle' then
    throttle(id, host, now + wait, ARGV[16] == '1')
    if ARGV[15] == '1' then redis.call('HSET', job_key(id), 'start_reserved', 1) end
    add_event('job_requeued', id, 'outcome', disposition, 'host', host)
    return 'OK'
  end
  if wait > 0 or disposition == 'yield' then delay(id, now + wait) else enqueue(id, priority, ARGV[8] == '') end
  add_event('job_requeued', id, 'outcome', disposition, 'note', note)
  wake()
end
return 'OK'
