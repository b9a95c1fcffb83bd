-- Execute an admin command on one job. A running job gets a flag, and its supervisor a message; other jobs change at once.
--
-- KEYS[1] -> intake list
-- KEYS[2] -> hash of the failure records that clients see; in a Cluster the outbox
-- ARGV[1] -> key prefix
-- ARGV[2] -> job id
-- ARGV[3] -> command: cancel, pause, resume, retry, promote, priority, or remove (delete an ended job)
-- ARGV[4] -> priority: the new one, else ''
-- ARGV[5] -> cancel and retry: kind of the failure record: hash, outbox, or '' for none
-- ARGV[6] -> field of the failure record
-- ARGV[7] -> value of the failure record
--
-- Returns OK, ASKED (the supervisor will execute the command), NONE (the job is not known), or the state that does not
--   allow the command: a job state, or following (the job ends with an equal job).
local id, command, level, kind, field, record = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local state, owner, priority, flag, due, leader, list =
  unpack(redis.pcall('HMGET', job_key(id), 'state', 'owner', 'priority', 'flag', 'due', 'leader', 'list'))
if not state then return 'NONE' end

expect_own_types()
expect_end_types()
redis.call('ZCARD', prefix .. 'paused')

-- Ask the job's supervisor. The flag remains if the message is lost: the next heartbeat returns it.
local function ask(what)
  if flag ~= 'cancel' then redis.call('HSET', job_key(id), 'flag', what) end
  send_mail(owner, what .. ' ' .. id)
  return 'ASKED'
end

-- Take a job that does not run out of the structures in which it waits.
local function stop_waiting()
  leave_stale_entry(state, list, priority)
  remove_from_throttled(id)
  redis.call('ZREM', prefix .. 'delayed', id)
end

local function requeue(place, is_front)
  stop_waiting()
  redis.call('HDEL', job_key(id), 'leader', 'due', 'yielded')
  enqueue(id, place, is_front)
  add_event('job_requeued', id, 'outcome', command)
  wake()
  return 'OK'
end

-- Delete the failure record that clients see, unless it belongs to another job with that URL.
local function delete_record()
  local seen = kind == 'hash' and redis.call('HGET', KEYS[2], field)
  if seen and string.find(seen, redis.call('HGET', job_key(id), 'raw'), 1, true) then redis.call('HDEL', KEYS[2], field) end
end

local commands = {}

function commands.cancel()
  if TERMINAL[state] then return state end
  if state == 'running' then return ask('cancel') end
  stop_waiting()
  redis.call('ZREM', prefix .. 'paused', id)
  if kind == 'hash' then write_failure(KEYS[2], field, record) end
  if kind == 'outbox' then redis.call('HSET', KEYS[2], field, now .. ' ' .. record) end
  end_job(id, 'cancelled', '{"label":"cancelled","message":"the job was cancelled"}')
  free_followers(id)
  return 'OK'
end

function commands.pause()
  if TERMINAL[state] or state == 'paused' then return state end
  if state == 'running' then return ask('pause') end
  if flag == 'cancel' then return state end -- its supervisor died before it cancelled the job; the next one cancels it
  stop_waiting()
  pause(id)
  return 'OK'
end

function commands.resume()
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
  return requeue(priority, false)
end

-- Restart a failed or cancelled job; run a delayed job now.
function commands.retry()
  if state == 'delayed' then return requeue(priority, false) end
  if state ~= 'failed' and state ~= 'cancelled' then return state end
  forget_end(id)
  redis.call('HDEL', job_key(id), 'ended', 'note', 'flag', 'dedupe', 'claim_id')
  redis.call('HSET', job_key(id), 'attempts', 0, 'crashes', 0, 'takeovers', 0)
  redis.call('PERSIST', job_key(id))
  delete_record()
  count('retried')
  return requeue(priority, false)
end

-- Queue a job before all others, whatever its priority; its priority does not change.
function commands.promote()
  if leader or (state ~= 'queued' and state ~= 'delayed') then return leader and 'following' or state end
  return requeue('high', true)
end

function commands.priority()
  if TERMINAL[state] then return state end
  redis.call('HSET', job_key(id), 'priority', level)
  if state == 'queued' and not leader then return requeue(level, false) end
  return 'OK'
end

-- Delete an ended job. The record that clients see is not deleted.
function commands.remove()
  if not TERMINAL[state] then return state end
  forget_end(id)
  redis.call('DEL', job_key(id))
  return 'OK'
end

return commands[command]()
