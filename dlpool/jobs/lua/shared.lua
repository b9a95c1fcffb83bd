-- Functions shared by all transitions. This text is prepended to each script.
-- ARGV[1] is always the prefix of dlpool's own keys. They have the hash tag of KEYS[1], so all are in one Cluster slot.
local prefix = ARGV[1]
local MAX_DRIFT_MS = 2000 -- a smaller step back of the clock is not compensated
local WRITE_INTERVAL_MS = 1000 -- the time is stored at most this often

-- Return the queue's time and its lead over the clock of Redis, both in ms.
-- The queue's time follows that clock but is never set back: when an administrator, NTP or a failover sets the clock back,
-- the difference is added from then on, so that delays and leases keep their length. All times in dlpool's own keys are
-- queue times; queue_clock.py converts them for display.
local function queue_time()
  local clock = redis.call('TIME')
  local wall = clock[1] * 1000 + math.floor(clock[2] / 1000) -- since 1970
  local seen, ahead = unpack(redis.call('HMGET', prefix .. 'clock', 'seen', 'ahead'))
  seen, ahead = tonumber(seen or 0) or 0, tonumber(ahead or 0) or 0
  local behind = seen - (wall + ahead)
  if behind >= MAX_DRIFT_MS then ahead = ahead + behind end
  local time = wall + ahead
  if behind >= MAX_DRIFT_MS or time - seen >= WRITE_INTERVAL_MS then
    redis.call('HSET', prefix .. 'clock', 'seen', time, 'ahead', ahead)
  end
  return time, ahead
end

local now, ahead = queue_time()

-- Add to a number in a hash and return the sum. A value that is not a number counts as 0.
local function add_to(key, field, amount)
  local sum = redis.pcall('HINCRBY', key, field, amount)
  if type(sum) == 'number' then return sum end
  redis.call('HSET', key, field, math.max(0, amount))
  return math.max(0, amount)
end

-- Return whether the caller is the first within the interval to do the work that the key stands for.
-- The stored queue time decides; the expiry, which uses the clock of Redis, only removes an unused key.
local function take_turn(name, interval)
  local free = tonumber(redis.call('GET', prefix .. name) or 0) or 0
  if free > now then return false end
  redis.call('SET', prefix .. name, now + interval, 'PX', interval)
  return true
end

local DONE_KEPT, DEAD_KEPT = 10000, 10000 -- ended jobs that are kept
local DONE_TTL_MS, DEAD_TTL_MS = 86400000, 7 * 86400000
local LOST_MS = 86400000 -- time for which a silent supervisor is listed
local STATS_TTL_S = 35 * 86400
local EVENTS_KEPT = 10000
local MAIL_KEPT, MAIL_TTL_MS = 100, 60000 -- messages to a supervisor
local MIB = 1048576
local LARGE = 4096 -- bytes; a job with a longer text is large
local LARGE_BYTES = 64 * MIB -- total size of the large jobs in each set of ended jobs
local WAITING_BYTES = 1024 * MIB -- total of the texts of pushed jobs that have not ended
local FAILURES_KEPT, FAILURES_BYTES, FAILURES_MS = 100000, 256 * MIB, 30 * 86400000 -- records that clients see
local FOLLOWERS_MAX = 1000 -- of one job, so that the script that ends it stays short
local TERMINAL = { succeeded = true, failed = true, cancelled = true }

-- Raise an error if a key that a transition writes has another type. An error in the middle of a script keeps the writes
-- made before it, so types are checked before the first write.
local function expect_own_types()
  for _, name in ipairs({ 'delayed', 'leases', 'throttled' }) do redis.call('ZCARD', prefix .. name) end
  for _, name in ipairs({ 'ready:high', 'ready:normal', 'ready:low', 'ready:limited', 'wake' }) do redis.call('LLEN', prefix .. name) end
  redis.call('XRANGE', prefix .. 'events', '+', '+') -- allowed to the ACL user, and returns nothing
  redis.call('HLEN', prefix .. 'stale')
  redis.call('HLEN', prefix .. 'stats:' .. math.floor((now - ahead) / 86400000))
  local fence = redis.call('GET', prefix .. 'fence')
  if fence and (#fence > 15 or not string.find(fence, '^%d+$')) then error('WRONGTYPE ' .. prefix .. 'fence is not a number') end
end

-- Raise an error if a key that is written when a job ends has another type.
local function expect_end_types()
  for _, name in ipairs({ 'done', 'dead', 'cancelled' }) do
    redis.call('ZCARD', prefix .. name)
    redis.call('ZCARD', prefix .. 'large:' .. name)
  end
  redis.call('ZCARD', prefix .. 'failures')
  redis.call('HLEN', prefix .. 'bytes')
  redis.call('HLEN', prefix .. 'failures:bytes')
end

-- A job's hash is read by pcall: a hash that another program has overwritten counts as deleted. An error would block all
-- other jobs.
local function job_key(id) return prefix .. 'job:' .. id end

-- Return the host and port in the URL of a pushed job, or ''. The text is searched, not parsed: the result decides only
-- the order of jobs.
local function host_of(raw)
  local found = string.match(string.sub(raw, 1, 65536), '"url"%s*:%s*"[%w+.-]*:\\?/\\?/([^/?#"\\]*)')
  local authority = string.lower(found or '')
  return string.match(authority, '^.*@(.*)$') or authority
end

-- Call visit(entry, is_from_left) for the `most` entries of a list that are taken next, then for the `most` entries that are
-- taken last, each in the order in which they are taken. Stop when visit returns true; each part also stops after SCAN_BYTES.
-- is_left: entries are taken from the left. is_from_left: the entry is nearer to the left end, for LREM.
local SCAN_MAX, SCAN_STEP, SCAN_BYTES = 500, 25, 4 * MIB
local function scan_list(list, is_left, most, visit)
  local length = redis.call('LLEN', list)
  local bytes = 0
  for at = 0, math.min(length, most) - 1, SCAN_STEP do
    local count = math.min(SCAN_STEP, most - at, length - at)
    local first = is_left and at or length - at - count
    local entries = redis.call('LRANGE', list, first, first + count - 1)
    for number = 1, #entries do
      local entry = entries[is_left and number or #entries + 1 - number]
      if visit(entry, is_left) then return end
      bytes = bytes + #entry
    end
    if bytes > SCAN_BYTES then break end
  end
  bytes = 0
  for rest = math.min(length - most, most), 1, -SCAN_STEP do
    local count = math.min(SCAN_STEP, rest)
    local first = is_left and length - rest or rest - count
    local entries = redis.call('LRANGE', list, first, first + count - 1)
    for number = 1, #entries do
      local entry = entries[is_left and number or #entries + 1 - number]
      if visit(entry, not is_left) then return end
      bytes = bytes + #entry
    end
    if bytes > SCAN_BYTES then return end
  end
end

local function ready_key(priority) return prefix .. 'ready:' .. priority end

-- Return whether the queue is paused or the node of a supervisor drained. A sid is the node's id, a hyphen and 8 digits.
local function accepts_no_jobs(sid)
  return redis.call('EXISTS', prefix .. 'halted') == 1 or redis.call('SISMEMBER', prefix .. 'drained', string.sub(sid, 1, -10)) == 1
end

-- Let a waiting supervisor claim at once. The list holds at most one token.
local function wake()
  redis.call('LPUSH', prefix .. 'wake', '1')
  redis.call('LTRIM', prefix .. 'wake', 0, 0)
end

-- Send a message to a supervisor. The mailbox is bounded and expires.
local function send_mail(sid, message)
  local mail = prefix .. 'mail:' .. sid
  redis.call('RPUSH', mail, message)
  redis.call('LTRIM', mail, -MAIL_KEPT, -1)
  redis.call('PEXPIRE', mail, MAIL_TTL_MS)
end

local function add_event(event, id, ...)
  redis.call('XADD', prefix .. 'events', 'MAXLEN', '~', EVENTS_KEPT, '*', 'event', event, 'id', id, ...)
end

-- Increment a counter of the current day.
local function count(what)
  local key = prefix .. 'stats:' .. math.floor((now - ahead) / 86400000)
  add_to(key, what, 1)
  redis.call('EXPIRE', key, STATS_TTL_S)
end

-- Take a job from its owner: remove the lease.
local function disown(id, owner)
  redis.call('ZREM', prefix .. 'leases', id)
  redis.call('SREM', prefix .. 'held:' .. owner, id)
  redis.call('HDEL', job_key(id), 'owner', 'lease_expired', 'progress')
end

-- Append a job to a ready list, or put it at the front. The lists are read from the right: RPUSH is the front.
-- The field `list` names the list in which the job counts: after an admin command another list may hold its id, too.
local function enqueue(id, priority, is_front)
  redis.call('HSET', job_key(id), 'state', 'queued', 'list', priority)
  redis.call(is_front and 'RPUSH' or 'LPUSH', ready_key(priority), id)
end

-- Count the stale entry of a job that leaves its ready list before its turn. The entry itself stays until a claim skips
-- it, because a search through the list would be slow.
local function leave_stale_entry(state, list, priority)
  if state == 'queued' and list ~= 'followers' then add_to(prefix .. 'stale', list or priority, 1) end
end

local function skip_stale_entry(list)
  if add_to(prefix .. 'stale', list, -1) < 1 then redis.call('HDEL', prefix .. 'stale', list) end
end

local function delay(id, due)
  redis.call('HSET', job_key(id), 'state', 'delayed', 'due', due)
  redis.call('ZADD', prefix .. 'delayed', due, id)
end

-- Let a job wait for its host. When a slot of the host becomes free, the oldest job that waits for a slot is released.
local function throttle(id, host, due, waits_for_slot)
  redis.call('HSET', job_key(id), 'state', 'delayed', 'due', due, 'host', host)
  redis.call('ZADD', prefix .. 'throttled', due, id)
  if waits_for_slot then redis.call('ZADD', prefix .. 'throttled:' .. host, redis.call('HGET', job_key(id), 'created') or now, id) end
end

local function remove_from_throttled(id)
  local host = redis.pcall('HGET', job_key(id), 'host')
  if type(host) ~= 'string' then return end
  redis.call('ZREM', prefix .. 'throttled', id)
  redis.call('ZREM', prefix .. 'throttled:' .. host, id)
  redis.call('HDEL', job_key(id), 'host')
end

-- Queue a throttled job before all other jobs, because it was claimed earlier. Return false if the job is not delayed.
local function release_throttled(id)
  remove_from_throttled(id)
  if redis.pcall('HGET', job_key(id), 'state') ~= 'delayed' then return false end
  enqueue(id, 'limited', false)
  wake()
  return true
end

-- Release the oldest job that waits for a slot of the host.
local function release_next_of(host)
  for _ = 1, 10 do -- skips ids of deleted jobs
    local id = redis.call('ZPOPMIN', prefix .. 'throttled:' .. host)[1]
    if not id then return end
    redis.call('ZREM', prefix .. 'throttled', id)
    if release_throttled(id) then return end
  end
end

-- Let a job wait for the end of the job with the same digest. Return that job's id, or false if this job leads.
local function follow(id, digest)
  local key = prefix .. 'dedupe:' .. digest
  local leader = redis.pcall('GET', key)
  local followers = type(leader) == 'string' and prefix .. 'followers:' .. leader
  if followers and leader ~= id and redis.call('LLEN', followers) < FOLLOWERS_MAX then
    local state = redis.pcall('HGET', job_key(leader), 'state')
    if type(state) == 'string' and not TERMINAL[state] then
      redis.call('RPUSH', followers, id)
      redis.call('HSET', job_key(id), 'state', 'queued', 'leader', leader, 'list', 'followers')
      return leader
    end
  end
  redis.call('SET', key, id)
  redis.call('HSET', job_key(id), 'dedupe', digest)
  return false
end

-- Move up to 200 reserved jobs of a supervisor back to the end of the intake list from which they were taken.
local function empty_inbox(sid, order)
  for _ = 1, 200 do
    if not redis.call('LMOVE', prefix .. 'inbox:' .. sid, KEYS[1], 'LEFT', order == 'lifo' and 'LEFT' or 'RIGHT') then return end
  end
end

-- Take a running job from its owner and put it at the front of the queue. The new fence invalidates the owner's lease.
local function requeue_running(id, owner, priority)
  redis.call('HSET', job_key(id), 'fence', redis.call('INCR', prefix .. 'fence'))
  add_to(job_key(id), 'takeovers', 1)
  disown(id, owner)
  enqueue(id, priority, true)
  count('recovered')
  add_event('job_recovered', id, 'owner', owner)
end

-- Return the number of jobs that a supervisor holds or has reserved.
local function jobs_of(sid)
  return redis.call('SCARD', prefix .. 'held:' .. sid) + redis.call('LLEN', prefix .. 'inbox:' .. sid)
end

local function deregister(sid)
  redis.call('ZREM', prefix .. 'supervisors', sid)
  redis.call('DEL', prefix .. 'supervisor:' .. sid, prefix .. 'mail:' .. sid)
end

-- Bound the total size of ended jobs with long texts: the oldest of them are deleted.
local function bound_large(id, set)
  local size = tonumber(redis.call('HGET', job_key(id), 'size') or 0) or 0
  if size <= LARGE or size > MIB then return end -- of a job above 1 MiB only the beginning is kept
  if redis.call('ZADD', prefix .. 'large:' .. set, now, id .. ' ' .. size) == 0 then return end
  local total = add_to(prefix .. 'bytes', set, size)
  while total > LARGE_BYTES do
    local oldest = redis.call('ZPOPMIN', prefix .. 'large:' .. set)[1]
    if not oldest then
      redis.call('HDEL', prefix .. 'bytes', set)
      return
    end
    local other, bytes = string.match(oldest, '^(.*) (%d+)$')
    total = add_to(prefix .. 'bytes', set, -bytes)
    if redis.call('ZREM', prefix .. set, other) == 1 then redis.call('DEL', job_key(other)) end
  end
end

-- Write a failure record that clients see, and delete the oldest ones beyond the bounds of number, bytes and age.
-- Records that another service has written are not counted and stay.
local function write_failure(key, url, record)
  local known, sizes = prefix .. 'failures', prefix .. 'failures:bytes'
  redis.call('HSET', key, url, record)
  redis.call('ZADD', known, now, url)
  local size = #url + #record
  local total = add_to(prefix .. 'bytes', 'failures', size - (tonumber(redis.call('HGET', sizes, url) or 0) or 0))
  redis.call('HSET', sizes, url, size)
  for _ = 1, 100 do
    local oldest, at = unpack(redis.call('ZRANGE', known, 0, 0, 'WITHSCORES'))
    if not oldest or oldest == url then return end
    if redis.call('ZCARD', known) <= FAILURES_KEPT and total <= FAILURES_BYTES and tonumber(at) >= now - FAILURES_MS then return end
    redis.call('ZREM', known, oldest)
    redis.call('HDEL', key, oldest)
    total = add_to(prefix .. 'bytes', 'failures', -(tonumber(redis.call('HGET', sizes, oldest) or 0) or 0))
    redis.call('HDEL', sizes, oldest)
  end
end

-- Count the bytes of a pushed job until it ends. If the sum would exceed WAITING_BYTES, count nothing and return true.
local function exceeds_waiting_bytes(size)
  if add_to(prefix .. 'bytes', 'waiting', size) <= WAITING_BYTES then return false end
  add_to(prefix .. 'bytes', 'waiting', -size)
  return true
end

local function uncount_waiting_bytes(id)
  if redis.call('HDEL', job_key(id), 'counted') == 0 then return end
  add_to(prefix .. 'bytes', 'waiting', -(tonumber(redis.call('HGET', job_key(id), 'size') or 0) or 0))
end

-- Keep an ended job until its hash expires. The number in the set is bounded here; readers ignore expired ids.
local function remember(id, set, kept, ttl)
  redis.call('ZADD', prefix .. set, now, id)
  redis.call('PEXPIRE', job_key(id), ttl)
  local excess = math.min(redis.call('ZCARD', prefix .. set) - kept, 10)
  for _ = 1, excess do
    local oldest = redis.call('ZPOPMIN', prefix .. set)[1]
    if TERMINAL[redis.pcall('HGET', job_key(oldest), 'state')] then redis.call('DEL', job_key(oldest)) end
  end
end

-- Remove a job from the sets of ended jobs.
local function forget_end(id)
  for _, set in ipairs({ 'done', 'dead', 'cancelled' }) do redis.call('ZREM', prefix .. set, id) end
end

local function pause(id)
  redis.call('HDEL', job_key(id), 'flag', 'leader')
  redis.call('HSET', job_key(id), 'state', 'paused')
  redis.call('ZADD', prefix .. 'paused', now, id)
  add_event('job_paused', id)
end

local KEPT = {
  succeeded = { 'done', DONE_KEPT, DONE_TTL_MS },
  failed = { 'dead', DEAD_KEPT, DEAD_TTL_MS },
  cancelled = { 'cancelled', DEAD_KEPT, DEAD_TTL_MS },
}

-- End a job in a terminal state.
local function end_job(id, state, note)
  redis.call('HSET', job_key(id), 'state', state, 'ended', now, 'note', note)
  redis.call('HDEL', job_key(id), 'flag', 'due')
  uncount_waiting_bytes(id)
  remember(id, unpack(KEPT[state]))
  bound_large(id, KEPT[state][1])
  count(state)
  add_event('job_' .. state, id, 'note', note)
end

-- Return {id, priority} of each job that waits for the end of this job, each once. The list holds a job twice if the job
-- left and returned.
local function followers_of(id)
  local found, seen = {}, {}
  for _, follower in ipairs(redis.call('LRANGE', prefix .. 'followers:' .. id, 0, FOLLOWERS_MAX)) do
    local state, leader, priority = unpack(redis.pcall('HMGET', job_key(follower), 'state', 'leader', 'priority'))
    if state == 'queued' and leader == id and not seen[follower] then found[#found + 1] = { follower, priority } end
    seen[follower] = true
  end
  return found
end

local function forget_leader(id, digest)
  if digest and redis.call('GET', prefix .. 'dedupe:' .. digest) == id then redis.call('DEL', prefix .. 'dedupe:' .. digest) end
  redis.call('DEL', prefix .. 'followers:' .. id)
end

-- Queue the followers of a cancelled job: each runs on its own.
local function free_followers(id)
  for _, one in ipairs(followers_of(id)) do
    redis.call('HDEL', job_key(one[1]), 'leader')
    enqueue(one[1], one[2], false)
  end
  forget_leader(id, redis.call('HGET', job_key(id), 'dedupe'))
end
