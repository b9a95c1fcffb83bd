-- A job leaves its supervisor: for good, with the record that clients see, or back into the queue.
-- KEYS  1 intake, 2 key of the visible record, or the intake if there is none
-- ARGV  1 prefix, 2 sid, 3 id, 4 fence,
--       5 outcome: success, failed, cancelled (ended); retry (delayed); release (delayed, or to the front; the attempt is
--         given back); yield (delayed, and then behind all that waits; the attempt is given back); pause (the same, for one that was asked to pause); park (the same, until its host may be asked); crash (to the front, one more death is
--         counted); follow (waits for the job that does the same). What was asked to pause is paused by any but the ends
--       6 delay in ms, 7 note (JSON), 8 priority to go on with, or '', 9 digest of url and path (follow), or ''
--       10 kind of the visible record: string (SET with 11 seconds to live), hash (HSET with field 12),
--         outbox (in a Cluster, KEYS[2] is the outbox: HSET with field 12, after the time), or ''
--       11 ttl s, 12 field, 13 value
--       14 host on which it had a slot, or for which it is parked, or ''; 15 whether its start there is reserved: 1 or 0
--       16 whether it is parked for a slot: 1 or 0 (the time tells otherwise)
-- Returns OK, DUP (done by an earlier call), FENCED (another claim or recovery came between), GONE (no such job),
--         or for follow: FOLLOWS or LEADS (it goes on running). An error changes nothing.
local sid, id, fence, outcome, wait = ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local note, digest, host = ARGV[7], ARGV[9], ARGV[14]
local OUTBOX_MAX = 10000 -- records; no job ends while there are as many
local state, owner, present, priority, dedupe, flag =
  unpack(redis.pcall('HMGET', job_key(id), 'state', 'owner', 'fence', 'priority', 'dedupe', 'flag'))
if not state then return 'GONE' end
if present ~= fence then return 'FENCED' end
if state ~= 'running' or owner ~= sid then return 'DUP' end

-- An error in the midst of a script leaves what it had done by then: what can fail is looked at first.
if ARGV[10] == 'hash' then
  local kind = redis.call('TYPE', KEYS[2]).ok
  if kind ~= 'hash' and kind ~= 'none' then return redis.error_reply('WRONGTYPE ' .. KEYS[2] .. ' is not a hash') end
end

expect_own_types()
expect_end_types()
redis.call('SCARD', prefix .. 'own:' .. sid)
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

-- The record and the end of the job, and of those that only waited for it, are one step.
local function end_all(name)
  write_record()
  end_one(id, name, note)
  if not dedupe then return end
  for _, one in ipairs(followers_of(id)) do end_one(one[1], name, note) end
  forget_leader(id, dedupe)
end

if outcome == 'follow' then
  if dedupe or not follow(id, digest) then return 'LEADS' end
  disown(id, sid)
  return 'FOLLOWS'
end

disown(id, sid)
if host ~= '' and outcome ~= 'park' then slot_is_free(host) end
if ARGV[8] ~= '' then
  priority = ARGV[8]
  redis.call('HSET', job_key(id), 'priority', priority)
end
if outcome == 'success' then
  end_all('succeeded')
elseif outcome == 'failed' then
  end_all('failed')
elseif outcome == 'cancelled' then
  write_record()
  end_one(id, 'cancelled', note)
  free_followers(id)
else
  if note ~= '' then redis.call('HSET', job_key(id), 'note', note) end
  if outcome == 'yield' then
    add_to(job_key(id), 'yields', 1)
    redis.call('HSET', job_key(id), 'yielded', 1)
  end
  if outcome == 'release' or outcome == 'pause' or outcome == 'park' or outcome == 'yield' then add_to(job_key(id), 'attempts', -1) end
  if outcome == 'crash' then add_to(job_key(id), 'crashes', 1) end
  count(outcome)
  if flag == 'pause' then
    pause(id)
    return 'OK'
  end
  if outcome == 'park' then
    park(id, host, now + wait, ARGV[16] == '1')
    if ARGV[15] == '1' then redis.call('HSET', job_key(id), 'paid', 1) end
    tell('job_requeued', id, 'outcome', outcome, 'host', host)
    return 'OK'
  end
  if wait > 0 or outcome == 'yield' then delay(id, now + wait) else enqueue(id, priority, ARGV[8] == '') end
  tell('job_requeued', id, 'outcome', outcome, 'note', note)
  wake()
end
return 'OK'
