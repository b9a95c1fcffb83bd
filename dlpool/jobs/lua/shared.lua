-- What the transitions share. It is put in front of each of them; ARGV[1] is always the prefix of dlpool's own keys,
-- which share the hash tag of KEYS[1], the intake list, and so its slot.
local prefix = ARGV[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000) -- ms since 1970

local DONE_KEPT, DEAD_KEPT = 10000, 10000 -- ended jobs that are remembered
local DONE_TTL_MS, DEAD_TTL_MS = 86400000, 7 * 86400000
local STATS_TTL_S = 35 * 86400
local EVENTS_KEPT = 10000
local FOLLOWERS_MAX = 1000 -- of one job, so that its end stays one short script
local TERMINAL = { succeeded = true, failed = true, cancelled = true }

local function job_key(id) return prefix .. 'job:' .. id end

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
  local key = prefix .. 'stats:' .. math.floor(now / 86400000)
  redis.call('HINCRBY', key, what, 1)
  redis.call('EXPIRE', key, STATS_TTL_S)
end

-- Taken out of its owner's hands. The lists are read from the right: RPUSH is the front, LPUSH the back.
local function disown(id, owner)
  redis.call('ZREM', prefix .. 'leases', id)
  redis.call('SREM', prefix .. 'own:' .. owner, id)
  redis.call('HDEL', job_key(id), 'owner', 'suspect', 'progress')
end

local function enqueue(id, priority, is_front)
  redis.call('HSET', job_key(id), 'state', 'queued')
  redis.call(is_front and 'RPUSH' or 'LPUSH', ready_key(priority), id)
end

local function delay(id, due)
  redis.call('HSET', job_key(id), 'state', 'delayed', 'due', due)
  redis.call('ZADD', prefix .. 'delayed', due, id)
end

-- A job that another one does already waits for that one's end. Returns the leader's id, or false: it leads itself.
local function follow(id, digest)
  local key = prefix .. 'dedupe:' .. digest
  local leader = redis.call('GET', key)
  local followers = leader and prefix .. 'followers:' .. leader
  if leader and leader ~= id and redis.call('LLEN', followers) < FOLLOWERS_MAX then
    local state = redis.call('HGET', job_key(leader), 'state')
    if state and not TERMINAL[state] then
      redis.call('RPUSH', followers, id)
      redis.call('HSET', job_key(id), 'state', 'queued', 'leader', leader)
      return leader
    end
  end
  redis.call('SET', key, id)
  redis.call('HSET', job_key(id), 'dedupe', digest)
  return false
end

-- Remember an ended job for a while: the set is bounded by number here, by age where it is read.
local function remember(id, set, kept, ttl)
  redis.call('ZADD', prefix .. set, now, id)
  redis.call('PEXPIRE', job_key(id), ttl)
  local excess = math.min(redis.call('ZCARD', prefix .. set) - kept, 10)
  for _ = 1, excess do
    local oldest = redis.call('ZPOPMIN', prefix .. set)[1]
    redis.call('DEL', job_key(oldest))
  end
end
