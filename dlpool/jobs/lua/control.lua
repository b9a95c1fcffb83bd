-- What an operator asks of one job. A running one gets a flag, and its supervisor mail; all others change at once.
-- KEYS  1 intake, 2 hash of the failure records that clients see; in a Cluster the outbox
-- ARGV  1 prefix, 2 id, 3 verb: cancel, pause, resume, retry, promote, priority, remove (forget it, once it has ended)
--       4 priority (priority)
--       5 kind of the failure record, for cancel and retry: hash (6 field, 7 value), outbox (the same), or ''
-- Returns OK, ASKED (a supervisor will do it), NONE (no such job), or the state in which that cannot be done.
local id, verb, level, kind, field, record = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local state, owner, priority, flag, due, leader, at =
  unpack(redis.pcall('HMGET', job_key(id), 'state', 'owner', 'priority', 'flag', 'due', 'leader', 'at'))
if not state then return 'NONE' end

expect_own_types()
expect_end_types()
redis.call('ZCARD', prefix .. 'paused')

local function ask(what)
  if flag ~= 'cancel' then redis.call('HSET', job_key(id), 'flag', what) end
  local mail = prefix .. 'mail:' .. owner
  redis.call('RPUSH', mail, what .. ' ' .. id)
  redis.call('LTRIM', mail, -100, -1)
  redis.call('PEXPIRE', mail, 60000)
  return 'ASKED'
end

local function queue(place, is_front)
  leave_place(state, at, priority)
  unpark(id)
  redis.call('ZREM', prefix .. 'delayed', id)
  redis.call('HDEL', job_key(id), 'leader', 'due', 'yielded')
  enqueue(id, place, is_front)
  tell('job_requeued', id, 'outcome', verb)
  wake()
  return 'OK'
end

-- What clients see of the failure goes, unless it is of another job with that URL.
local function forget_record()
  local seen = kind == 'hash' and redis.call('HGET', KEYS[2], field)
  if seen and string.find(seen, redis.call('HGET', job_key(id), 'raw'), 1, true) then redis.call('HDEL', KEYS[2], field) end
end

local can = {}

function can.cancel()
  if TERMINAL[state] then return state end
  if state == 'running' then return ask('cancel') end
  leave_place(state, at, priority)
  unpark(id)
  redis.call('ZREM', prefix .. 'delayed', id)
  redis.call('ZREM', prefix .. 'paused', id)
  if kind == 'hash' then write_failure(KEYS[2], field, record) end
  if kind == 'outbox' then redis.call('HSET', KEYS[2], field, now .. ' ' .. record) end
  end_one(id, 'cancelled', '{"label":"cancelled","message":"the job was cancelled"}')
  free_followers(id)
  return 'OK'
end

function can.pause()
  if TERMINAL[state] or state == 'paused' then return state end
  if state == 'running' then return ask('pause') end
  if flag == 'cancel' then return state end -- its supervisor was asked, and died: the next one does it
  leave_place(state, at, priority)
  unpark(id)
  redis.call('ZREM', prefix .. 'delayed', id)
  pause(id)
  return 'OK'
end

function can.resume()
  if flag == 'pause' then
    redis.call('HDEL', job_key(id), 'flag')
    return 'OK'
  end
  if state ~= 'paused' then return state end
  redis.call('ZREM', prefix .. 'paused', id)
  if due and (tonumber(due) or 0) > now then
    delay(id, due)
    return 'OK'
  end
  return queue(priority, false)
end

-- Ended without success: from the beginning. Delayed: now.
function can.retry()
  if state == 'delayed' then return queue(priority, false) end
  if state ~= 'failed' and state ~= 'cancelled' then return state end
  forget_end(id)
  redis.call('HDEL', job_key(id), 'ended', 'note', 'flag', 'dedupe', 'claim')
  redis.call('HSET', job_key(id), 'attempts', 0, 'crashes', 0, 'takeovers', 0)
  redis.call('PERSIST', job_key(id))
  forget_record()
  count('retried')
  return queue(priority, false)
end

-- Before all others, whatever its priority; that it keeps.
function can.promote()
  if leader or (state ~= 'queued' and state ~= 'delayed') then return leader and 'following' or state end
  return queue('high', true)
end

function can.priority()
  if TERMINAL[state] then return state end
  redis.call('HSET', job_key(id), 'priority', level)
  if state == 'queued' and not leader then return queue(level, false) end
  return 'OK'
end

-- What clients see of it stays.
function can.remove()
  if not TERMINAL[state] then return state end
  forget_end(id)
  redis.call('DEL', job_key(id))
  return 'OK'
end

return can[verb]()
