-- Requeue jobs whose leases have expired. One call per TURN_MS does this; further calls in that time do nothing.
-- A first call only marks an expired lease. A call after the grace requeues the job with a new fence. During the grace the
-- owner can still renew the lease, for example after an outage of Redis in which all leases expired.
--
-- KEYS[1] -> intake list
-- ARGV[1] -> key prefix
-- ARGV[2] -> grace in ms
-- ARGV[3] -> order: fifo or lifo
--
-- Returns {number of leases that were marked, ids of the requeued jobs...}.
local grace, order = tonumber(ARGV[2]), ARGV[3]
local SUPERVISORS_MAX, LEASES_MAX, HELD_MAX = 200, 1000, 200 -- in one call
local TURN_MS = 4000
local OUTAGE_MS = 20000 -- after such a pause Redis was away, and earlier marks do not count
local LOST_KEPT = 100 -- silent supervisors in the list; less than SUPERVISORS_MAX, so that each is handled
local reply = { 0 }

-- Return whether no supervisor has called for OUTAGE_MS.
local function was_away()
  local last = redis.call('GET', prefix .. 'last_recovery')
  redis.call('SET', prefix .. 'last_recovery', now)
  return not last or now - last > OUTAGE_MS
end

local function handle_expired(id, is_mark_valid)
  local state, owner, priority, lease_expired =
    unpack(redis.pcall('HMGET', job_key(id), 'state', 'owner', 'priority', 'lease_expired'))
  if state ~= 'running' then
    redis.call('ZREM', prefix .. 'leases', id)
  elseif lease_expired and is_mark_valid then
    requeue_running(id, owner, priority)
    reply[#reply + 1] = id
  else
    redis.call('HSET', job_key(id), 'lease_expired', now)
    redis.call('ZADD', prefix .. 'leases', now + grace, id)
    reply[1] = reply[1] + 1
  end
end

-- Correct the counts of stale entries: the count of a list is at most the list's length.
local function correct_stale_counts()
  for _, list in ipairs({ 'limited', 'high', 'normal', 'low' }) do
    local entries = redis.call('LLEN', ready_key(list))
    if (tonumber(redis.call('HGET', prefix .. 'stale', list) or 0) or math.huge) > entries then
      redis.call('HSET', prefix .. 'stale', list, entries)
    end
    if entries == 0 then redis.call('HDEL', prefix .. 'stale', list) end
  end
end

-- Empty the inbox of a silent supervisor and restore leases that Redis has evicted.
local function handle_silent(sid)
  empty_inbox(sid, order)
  for _, id in ipairs(redis.call('SRANDMEMBER', prefix .. 'held:' .. sid, HELD_MAX)) do
    if redis.pcall('HGET', job_key(id), 'owner') ~= sid then
      redis.call('SREM', prefix .. 'held:' .. sid, id)
    else
      redis.call('ZADD', prefix .. 'leases', 'NX', now + grace, id)
    end
  end
end

expect_own_types()
if not take_turn('recovery_turn', TURN_MS) then return reply end
local is_mark_valid = not was_away()
local expired = redis.call('ZRANGEBYSCORE', prefix .. 'leases', '-inf', now, 'LIMIT', 0, LEASES_MAX)
for _, id in ipairs(expired) do handle_expired(id, is_mark_valid) end
local silent = redis.call('ZRANGEBYSCORE', prefix .. 'supervisors', '-inf', now, 'LIMIT', 0, SUPERVISORS_MAX)
local excess = redis.call('ZCOUNT', prefix .. 'supervisors', '-inf', now) - LOST_KEPT
for number, sid in ipairs(silent) do
  handle_silent(sid)
  if number <= excess and jobs_of(sid) == 0 then deregister(sid) end
end
redis.call('ZREMRANGEBYSCORE', prefix .. 'supervisors', '-inf', now - LOST_MS)
correct_stale_counts()
if #reply > 1 then wake() end
return reply
