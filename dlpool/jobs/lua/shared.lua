-- What the transitions share. It is put in front of each of them; ARGV[1] is always the prefix of dlpool's own keys,
-- which share the hash tag of KEYS[1] (the intake list, or the slots of a host), and so its slot.
local prefix = ARGV[1]
local JUMP_MS = 2000 -- a clock that is set back by less is not corrected for
local NOTED_MS = 1000 -- the time is written down no more often than this

-- Return the queue's time and how far it is ahead of the clock of Redis, both in ms. The queue's time runs as that clock
-- does, but is never set back: when the clock is, by an administrator, by NTP or by a failover to another host, the
-- difference is added from then on. So what is due in a minute stays due in a minute. All times in dlpool's own keys
-- are in the queue's time; people are shown them less the difference (clock.py).
local function queue_time()
  local clock = redis.call('TIME')
  local wall = clock[1] * 1000 + math.floor(clock[2] / 1000) -- since 1970
  local seen, ahead = unpack(redis.call('HMGET', prefix .. 'looked:clock', 'seen', 'ahead'))
  seen, ahead = tonumber(seen or 0) or 0, tonumber(ahead or 0) or 0
  local behind = seen - (wall + ahead)
  if behind >= JUMP_MS then ahead = ahead + behind end
  local time = wall + ahead
  if behind >= JUMP_MS or time - seen >= NOTED_MS then
    redis.call('HSET', prefix .. 'looked:clock', 'seen', time, 'ahead', ahead)
  end
  return time, ahead
end

local now, ahead = queue_time()

-- Add to a number of a hash and return the sum. What is no number, as another program may have left it, counts as 0.
local function add_to(key, field, amount)
  local sum = redis.pcall('HINCRBY', key, field, amount)
  if type(sum) == 'number' then return sum end
  redis.call('HSET', key, field, math.max(0, amount))
  return math.max(0, amount)
end

-- Whether the caller may do something that is done once each interval, whoever does it. The key's own expiry is by the
-- clock, and only removes it in the end.
local function take_turn(name, interval)
  local free = tonumber(redis.call('GET', prefix .. name) or 0) or 0
  if free > now then return false end
  redis.call('SET', prefix .. name, now + interval, 'PX', interval)
  return true
end

local DONE_KEPT, DEAD_KEPT = 10000, 10000 -- ended jobs that are remembered
local DONE_TTL_MS, DEAD_TTL_MS = 86400000, 7 * 86400000
local LOST_MS = 86400000 -- for so long a supervisor is listed that has fallen silent
local STATS_TTL_S = 35 * 86400
local EVENTS_KEPT = 10000
local MIB = 1048576
local LARGE = 4096 -- ended jobs whose text is longer are also bounded by their bytes
local LARGE_BYTES = 64 * MIB -- of those in each set of ended jobs
local WAITING_BYTES = 1024 * MIB -- of the texts of pushed jobs that have not ended
local FAILURES_KEPT, FAILURES_BYTES, FAILURES_MS = 100000, 256 * MIB, 30 * 86400000 -- records that clients see
local FOLLOWERS_MAX = 1000 -- of one job, so that its end stays one short script
local TERMINAL = { succeeded = true, failed = true, cancelled = true }

-- An error in the midst of a script leaves what it had done by then. So what it will write to is looked at first: of
-- another type, as another program may have left it, it raises the error here, before anything has changed.
local function expect_own_types()
  for _, name in ipairs({ 'delayed', 'leases', 'parked' }) do redis.call('ZCARD', prefix .. name) end
  for _, name in ipairs({ 'ready:high', 'ready:normal', 'ready:low', 'ready:limited', 'wake' }) do redis.call('LLEN', prefix .. name) end
  redis.call('XRANGE', prefix .. 'events', '+', '+') -- which an ACL user may, and which returns nothing
  redis.call('HLEN', prefix .. 'stale')
  redis.call('HLEN', prefix .. 'stats:' .. math.floor((now - ahead) / 86400000))
  local fence = redis.call('GET', prefix .. 'fence')
  if fence and (#fence > 15 or not string.find(fence, '^%d+$')) then error('WRONGTYPE ' .. prefix .. 'fence is not a number') end
end

-- The same of what an end is written to.
local function expect_end_types()
  for _, name in ipairs({ 'done', 'dead', 'cancelled' }) do
    redis.call('ZCARD', prefix .. name)
    redis.call('ZCARD', prefix .. 'large:' .. name)
  end
  redis.call('ZCARD', prefix .. 'failures')
  redis.call('HLEN', prefix .. 'bytes')
  redis.call('HLEN', prefix .. 'failures:bytes')
end

-- A job's hash is read by pcall: one that another program has overwritten is as one that is gone, not an error that keeps
-- all other jobs from their turn.
local function job_key(id) return prefix .. 'job:' .. id end

-- The host and port in a pushed job's URL as its text tells them at a glance, or ''. It only says whose turn it is.
local function host_of(raw)
  local found = string.match(string.sub(raw, 1, 65536), '"url"%s*:%s*"[%w+.-]*:\\?/\\?/([^/?#"\\]*)')
  local authority = string.lower(found or '')
  return string.match(authority, '^.*@(.*)$') or authority
end

-- Have see look at the jobs of a list from the end that is taken from, until it returns true: at so many of them, and
-- behind those at as many of the last ones, the older before the newer. It hears from which end one is found sooner.
local SEEN, SEEN_AT_ONCE, SEEN_BYTES = 500, 25, 4 * MIB
local function look_through(list, is_left, most, see)
  local length = redis.call('LLEN', list)
  local bytes = 0
  for at = 0, math.min(length, most) - 1, SEEN_AT_ONCE do
    local count = math.min(SEEN_AT_ONCE, most - at, length - at)
    local first = is_left and at or length - at - count
    local some = redis.call('LRANGE', list, first, first + count - 1)
    for number = 1, #some do
      local one = some[is_left and number or #some + 1 - number]
      if see(one, is_left) then return end
      bytes = bytes + #one
    end
    if bytes > SEEN_BYTES then break end
  end
  bytes = 0
  for rest = math.min(length - most, most), 1, -SEEN_AT_ONCE do
    local count = math.min(SEEN_AT_ONCE, rest)
    local first = is_left and length - rest or rest - count
    local some = redis.call('LRANGE', list, first, first + count - 1)
    for number = 1, #some do
      local one = some[is_left and number or #some + 1 - number]
      if see(one, not is_left) then return end
      bytes = bytes + #one
    end
    if bytes > SEEN_BYTES then return end
  end
end

local function ready_key(priority) return prefix .. 'ready:' .. priority end

-- A supervisor that waits looks at once. The list holds one token at most.
local function wake()
  redis.call('LPUSH', prefix .. 'wake', '1')
  redis.call('LTRIM', prefix .. 'wake', 0, 0)
end

local function tell(event, id, ...)
  redis.call('XADD', prefix .. 'events', 'MAXLEN', '~', EVENTS_KEPT, '*', 'event', event, 'id', id, ...)
end

local function count(what)
  local key = prefix .. 'stats:' .. math.floor((now - ahead) / 86400000)
  add_to(key, what, 1)
  redis.call('EXPIRE', key, STATS_TTL_S)
end

-- Taken out of its owner's hands. The lists are read from the right: RPUSH is the front, LPUSH the back.
local function disown(id, owner)
  redis.call('ZREM', prefix .. 'leases', id)
  redis.call('SREM', prefix .. 'own:' .. owner, id)
  redis.call('HDEL', job_key(id), 'owner', 'suspect', 'progress')
end

-- "at" names the list that counts: what an operator did may have left the id in another one, too.
local function enqueue(id, priority, is_front)
  redis.call('HSET', job_key(id), 'state', 'queued', 'at', priority)
  redis.call(is_front and 'RPUSH' or 'LPUSH', ready_key(priority), id)
end

-- A waiting job leaves its list before its turn. Its place stays, as nobody looks for it there: it is counted until it
-- is passed by.
local function leave_place(state, at, priority)
  if state == 'queued' and at ~= 'followers' then add_to(prefix .. 'stale', at or priority, 1) end
end

local function pass_place(list)
  if add_to(prefix .. 'stale', list, -1) < 1 then redis.call('HDEL', prefix .. 'stale', list) end
end

local function delay(id, due)
  redis.call('HSET', job_key(id), 'state', 'delayed', 'due', due)
  redis.call('ZADD', prefix .. 'delayed', due, id)
end

-- Parked: it waits until its host may be asked. Of those that wait for a slot there the oldest is the first to go on.
local function park(id, host, due, is_for_slot)
  redis.call('HSET', job_key(id), 'state', 'delayed', 'due', due, 'host', host)
  redis.call('ZADD', prefix .. 'parked', due, id)
  if is_for_slot then redis.call('ZADD', prefix .. 'parked:' .. host, redis.call('HGET', job_key(id), 'created') or now, id) end
end

local function unpark(id)
  local host = redis.pcall('HGET', job_key(id), 'host')
  if type(host) ~= 'string' then return end
  redis.call('ZREM', prefix .. 'parked', id)
  redis.call('ZREM', prefix .. 'parked:' .. host, id)
  redis.call('HDEL', job_key(id), 'host')
end

-- What may go on goes before all others: its turn had come before.
local function let_go_on(id)
  unpark(id)
  if redis.pcall('HGET', job_key(id), 'state') ~= 'delayed' then return false end
  enqueue(id, 'limited', false)
  wake()
  return true
end

local function slot_is_free(host)
  for _ = 1, 10 do -- of ids whose jobs are gone
    local id = redis.call('ZPOPMIN', prefix .. 'parked:' .. host)[1]
    if not id then return end
    redis.call('ZREM', prefix .. 'parked', id)
    if let_go_on(id) then return end
  end
end

-- A job that another one does already waits for that one's end. Returns the leader's id, or false: it leads itself.
local function follow(id, digest)
  local key = prefix .. 'dedupe:' .. digest
  local leader = redis.pcall('GET', key)
  local followers = type(leader) == 'string' and prefix .. 'followers:' .. leader
  if followers and leader ~= id and redis.call('LLEN', followers) < FOLLOWERS_MAX then
    local state = redis.pcall('HGET', job_key(leader), 'state')
    if type(state) == 'string' and not TERMINAL[state] then
      redis.call('RPUSH', followers, id)
      redis.call('HSET', job_key(id), 'state', 'queued', 'leader', leader, 'at', 'followers')
      return leader
    end
  end
  redis.call('SET', key, id)
  redis.call('HSET', job_key(id), 'dedupe', digest)
  return false
end

-- What a supervisor had reserved goes back to where it was taken from, a few hundred at a time.
local function empty_inbox(sid, order)
  for _ = 1, 200 do
    if not redis.call('LMOVE', prefix .. 'inbox:' .. sid, KEYS[1], 'LEFT', order == 'lifo' and 'LEFT' or 'RIGHT') then return end
  end
end

-- Bound the ended jobs with long texts by their bytes: the oldest of them are forgotten.
local function remember_bytes(id, set)
  local size = tonumber(redis.call('HGET', job_key(id), 'size') or 0) or 0
  if size <= LARGE or size > MIB then return end -- of a job that is too long only the beginning is kept
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

-- Write a failure record that clients see, and forget the oldest ones: by number, bytes and age. Those that another
-- service wrote, or that were written before this was counted, stay.
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

-- The text of a pushed job counts until the job has ended.
local function is_full_with(size)
  if add_to(prefix .. 'bytes', 'waiting', size) <= WAITING_BYTES then return false end
  add_to(prefix .. 'bytes', 'waiting', -size)
  return true
end

local function count_no_more(id)
  if redis.call('HDEL', job_key(id), 'counted') == 0 then return end
  add_to(prefix .. 'bytes', 'waiting', -(tonumber(redis.call('HGET', job_key(id), 'size') or 0) or 0))
end

-- Remember an ended job for a while: the set is bounded by number here, by age where it is read.
local function remember(id, set, kept, ttl)
  redis.call('ZADD', prefix .. set, now, id)
  redis.call('PEXPIRE', job_key(id), ttl)
  local excess = math.min(redis.call('ZCARD', prefix .. set) - kept, 10)
  for _ = 1, excess do
    local oldest = redis.call('ZPOPMIN', prefix .. set)[1]
    if TERMINAL[redis.pcall('HGET', job_key(oldest), 'state')] then redis.call('DEL', job_key(oldest)) end
  end
end

-- Wherever an end is remembered: cancelled jobs of earlier versions stand among the dead.
local function forget_end(id)
  for _, set in ipairs({ 'done', 'dead', 'cancelled' }) do redis.call('ZREM', prefix .. set, id) end
end

local function pause(id)
  redis.call('HDEL', job_key(id), 'flag', 'leader')
  redis.call('HSET', job_key(id), 'state', 'paused')
  redis.call('ZADD', prefix .. 'paused', now, id)
  tell('job_paused', id)
end

local KEPT = {
  succeeded = { 'done', DONE_KEPT, DONE_TTL_MS },
  failed = { 'dead', DEAD_KEPT, DEAD_TTL_MS },
  cancelled = { 'cancelled', DEAD_KEPT, DEAD_TTL_MS },
}

local function end_one(id, state, note)
  redis.call('HSET', job_key(id), 'state', state, 'ended', now, 'note', note)
  redis.call('HDEL', job_key(id), 'flag', 'due')
  count_no_more(id)
  remember(id, unpack(KEPT[state]))
  remember_bytes(id, KEPT[state][1])
  count(state)
  tell('job_' .. state, id, 'note', note)
end

-- Those that still wait for the end of this job, with their priorities. One that left and came back stands there twice.
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

-- Their leader was cancelled, they were not: each goes on by itself.
local function free_followers(id)
  for _, one in ipairs(followers_of(id)) do
    redis.call('HDEL', job_key(one[1]), 'leader')
    enqueue(one[1], one[2], false)
  end
  forget_leader(id, redis.call('HGET', job_key(id), 'dedupe'))
end
