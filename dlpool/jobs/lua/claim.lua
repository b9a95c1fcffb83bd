-- Return the jobs that a supervisor holds and does not know of (the reply of an earlier claim was lost), and claim jobs for
-- its free slots. Each claim gives the job a new fence: heartbeat.lua and finish.lua accept only the present one, so two
-- supervisors cannot both complete a job.
--
-- KEYS[1] -> intake list
-- ARGV[1] -> key prefix
-- ARGV[2] -> supervisor id (sid)
-- ARGV[3] -> lease in ms
-- ARGV[4] -> order of the intake list: fifo or lifo
-- ARGV[5] -> free slots
-- ARGV[6] -> size of the largest valid job in bytes
-- ARGV[7] -> number of jobs that the caller knows, or -1 to get only new ones
-- ARGV[8] -> maximum of throttled jobs
-- ARGV[9] -> slots that one host may use while jobs of other hosts wait, or 0
-- ARGV[10] -> use of the slots by hosts (JSON): held (slots of each host), slow (slow hosts), slow_held (slots of the slow
--   hosts together), slow_limit (slots that they may use together), ahead (how many of the slots only jobs within these
--   bounds may use, even if no job of another host is found)
-- then "id.fence" of each known job
-- then for each free slot a random id: the id of a job that has none, and the id of its first claim
--
-- Returns false if the supervisor is not registered (heartbeat registers it), else
--   {due, gate, exceeded, skipped, {id, fence, raw, size, attempts, crashes, takeovers, created ms, priority, flag,
--   start_reserved, claim_id, yields}, ...}:
--   due -> ms until the next delayed job may run, or -1
--   gate -> open, paused (the queue is paused or the node drained), or full (ARGV[8] is reached: only throttled jobs start)
--   exceeded -> 1 if a host got more than its share because no job of another host was found; always 0 while slow hosts are
--     known
--   skipped -> jobs that were skipped because their hosts have their share
local sid, lease, order = ARGV[2], tonumber(ARGV[3]), ARGV[4]
local slots, largest, known_count = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local FIELDS = {
  'fence', 'raw', 'size', 'attempts', 'crashes', 'takeovers', 'created', 'priority', 'flag', 'start_reserved', 'claim_id', 'yields',
}
local RAW, START_RESERVED = 3, 11 -- places in a claimed row
local DUE_MAX, STALE_MAX = 200, 200 -- jobs that become ready, and stale entries that are skipped, in one call

if not redis.call('ZSCORE', prefix .. 'supervisors', sid) then return false end

expect_own_types()
redis.call('SCARD', prefix .. 'held:' .. sid)
local claimed = {}

local function add_row(id)
  local values = redis.pcall('HMGET', job_key(id), unpack(FIELDS))
  claimed[#claimed + 1] = { id, unpack(values) }
end

local fence = tonumber(redis.call('GET', prefix .. 'fence') or 0)
local function own(id, ...)
  fence = redis.call('INCR', prefix .. 'fence')
  redis.call('HSET', job_key(id), 'state', 'running', 'owner', sid, 'fence', fence, 'started', now, ...)
  redis.call('ZADD', prefix .. 'leases', now + lease, id)
  redis.call('SADD', prefix .. 'held:' .. sid, id)
  add_event('job_started', id, 'owner', sid)
end

-- Return an unused random id. A job keeps the id of its first claim, which identifies the files published for this job: a
-- client may give the job's own id to another job later.
local next_id = 10 + math.max(0, known_count)
local function new_id()
  next_id = next_id + 1
  return ARGV[next_id]
end

-- A host gets no more than its share of the slots while jobs of hosts below their share wait. If there are none, hosts that
-- are not slow may exceed their share first.
local share, use, is_exceeded, skipped, is_slow = tonumber(ARGV[9]), cjson.decode(ARGV[10]), false, 0, {}
for _, host in ipairs(use.slow or {}) do is_slow[host] = true end

local function has_its_share(host)
  if host == '' or share == 0 then return false end
  return use.held[host] and use.held[host] >= share or is_slow[host] and use.slow_held >= use.slow_limit
end

local must_choose = share > 0 and next(is_slow) ~= nil
for host in pairs(use.held or {}) do must_choose = must_choose or has_its_share(host) end

local function count_slot(raw)
  if share == 0 then return end
  local host = host_of(raw or '')
  use.held[host] = (use.held[host] or 0) + 1
  if is_slow[host] then use.slow_held = use.slow_held + 1 end
  must_choose = must_choose or has_its_share(host)
end

-- Remove and return the first entry of a list that is_wanted accepts. Add the rejected entries to `skipped`.
local function pick(list, is_left, is_wanted)
  local found
  scan_list(list, is_left, SCAN_MAX, function(entry, is_from_left)
    if not is_wanted(entry) then
      skipped = skipped + 1
      return false
    end
    redis.call('LREM', list, is_from_left and 1 or -1, entry)
    found = entry
    return true
  end)
  return found
end

local function claim_ready(id)
  own(id)
  redis.call('HSETNX', job_key(id), 'claim_id', new_id())
  add_to(job_key(id), 'attempts', 1)
  add_row(id)
  count_slot(claimed[#claimed][RAW])
  if claimed[#claimed][START_RESERVED] then redis.call('HDEL', job_key(id), 'start_reserved') end
end

-- Return the id that the client gave the job, if it is valid and unused. The job's text is decoded, but
-- never encoded again.
local function given_id(raw)
  if #raw > largest or not string.find(raw, '"dlpool"', 1, true) then return nil end
  local parsed, job = pcall(cjson.decode, raw)
  local id = parsed and type(job) == 'table' and type(job.dlpool) == 'table' and job.dlpool.id
  if type(id) ~= 'string' or #id > 64 or string.find(id, '[^%w_.-]') or id == '' then return nil end
  return redis.call('EXISTS', job_key(id)) == 0 and id or nil
end

-- Claim a job that was taken from the intake list.
local function claim_raw(raw)
  local claim_id = new_id()
  local id = given_id(raw) or claim_id
  local kept = #raw > largest and string.sub(raw, 1, 4096) or raw
  own(id, 'raw', kept, 'size', #raw, 'priority', 'normal', 'created', now, 'attempts', 1, 'claim_id', claim_id)
  claimed[#claimed + 1] = { id, fence, kept, #raw, 1, false, false, now, 'normal', false, false, claim_id, false }
  count_slot(raw)
  return true
end

local function is_below_share(host) return not has_its_share(host) end
local function is_fast(host) return not is_slow[host] end

-- Each from_* function claims one job of its source and returns true, or false if there is none. `suits`, if given,
-- accepts the job's host.
local function from_intake(suits)
  if suits then
    local found = pick(KEYS[1], order == 'lifo', function(raw) return suits(host_of(raw)) end)
    return found and claim_raw(found)
  end
  local raw = redis.call(order == 'lifo' and 'LPOP' or 'RPOP', KEYS[1])
  return raw and claim_raw(raw)
end

local function from_inbox()
  local raw = redis.call('RPOP', prefix .. 'inbox:' .. sid)
  return raw and claim_raw(raw)
end

-- Skip stale entries: their jobs were cancelled, paused or moved to another list.
local is_cut_short = false
local function from_ready(priority, suits)
  if suits then
    local found = pick(ready_key(priority), false, function(id)
      local state, list, raw = unpack(redis.pcall('HMGET', job_key(id), 'state', 'list', 'raw'))
      return state == 'queued' and (list or priority) == priority and suits(host_of(raw or ''))
    end)
    if found then claim_ready(found) end
    return found
  end
  for _ = 1, STALE_MAX do
    local id = redis.call('RPOP', ready_key(priority))
    if not id then return false end
    local state, list = unpack(redis.pcall('HMGET', job_key(id), 'state', 'list'))
    if state == 'queued' and (list or priority) == priority then
      claim_ready(id)
      return true
    end
    skip_stale_entry(priority)
  end
  is_cut_short = true
  return false
end

local function from_limited(suits) return from_ready('limited', suits) end
local function from_high(suits) return from_ready('high', suits) end
local function from_normal(suits) return from_ready('normal', suits) end
local function from_low(suits) return from_ready('low', suits) end

-- Of twenty fences in sequence, one prefers normal jobs, one low jobs and one the intake list, so that no list starves.
local ONLY_LIMITED = { from_inbox, from_limited }
local USUAL = { from_inbox, from_limited, from_high, from_normal, from_intake, from_low }
local LOW_FIRST = { from_inbox, from_limited, from_low, from_high, from_normal, from_intake }
local NORMAL_FIRST = { from_inbox, from_limited, from_normal, from_intake, from_high, from_low }
local INTAKE_FIRST = { from_inbox, from_limited, from_intake, from_high, from_normal, from_low }
local BY_FENCE = { [4] = NORMAL_FIRST, [9] = LOW_FIRST, [19] = INTAKE_FIRST }

local is_empty, is_full = {}, false
local choices = { { suits = is_below_share, without = {} }, { suits = is_fast, without = {} } }
if next(is_slow) == nil then choices[2] = nil end
local function claim_from(sources, choice)
  local without = choice and choice.without or is_empty
  for _, source in ipairs(sources) do
    if not without[source] and not is_empty[source] then
      if source(choice and choice.suits) then return true end
      without[source] = true
    end
  end
  return false
end

local function claim_next()
  local sources = is_full and ONLY_LIMITED or BY_FENCE[fence % 20] or USUAL
  if not must_choose or is_exceeded then return claim_from(sources) end
  for _, choice in ipairs(choices) do
    if claim_from(sources, choice) then return true end
  end
  if slots <= (use.ahead or 0) then return false end
  is_exceeded = claim_from(sources)
  return is_exceeded
end

local function make_due_ready()
  local due = redis.call('ZRANGEBYSCORE', prefix .. 'delayed', '-inf', now, 'LIMIT', 0, DUE_MAX)
  for _, id in ipairs(due) do
    redis.call('ZREM', prefix .. 'delayed', id)
    local state, priority, yielded = unpack(redis.pcall('HMGET', job_key(id), 'state', 'priority', 'yielded'))
    if state == 'delayed' then
      if yielded then redis.call('HDEL', job_key(id), 'yielded') end
      enqueue(id, yielded and 'low' or priority, false) -- a job that has yielded goes behind all waiting jobs
    end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'throttled', '-inf', now, 'LIMIT', 0, DUE_MAX)) do
    redis.call('ZREM', prefix .. 'throttled', id)
    release_throttled(id)
  end
end

local function soonest(set) return tonumber(redis.call('ZRANGE', prefix .. set, 0, 0, 'WITHSCORES')[2] or math.huge) end

local known = {}
for index = 11, 10 + known_count do known[ARGV[index]] = true end
local held = known_count >= 0 and redis.call('SMEMBERS', prefix .. 'held:' .. sid) or {}
for _, id in ipairs(held) do
  local owner, present = unpack(redis.pcall('HMGET', job_key(id), 'owner', 'fence'))
  if owner ~= sid then
    redis.call('SREM', prefix .. 'held:' .. sid, id)
  elseif not known[id .. '.' .. present] then
    redis.call('ZADD', prefix .. 'leases', now + lease, id)
    redis.call('HDEL', job_key(id), 'lease_expired')
    add_row(id)
    count_slot(claimed[#claimed][RAW])
    slots = slots - 1
  end
end
if accepts_no_jobs(sid) then
  empty_inbox(sid, order)
  return { -1, 'paused', 0, 0, unpack(claimed) }
end
if slots > 0 then make_due_ready() end
is_full = redis.call('ZCARD', prefix .. 'throttled') + redis.call('LLEN', ready_key('limited')) >= tonumber(ARGV[8])
while slots > 0 and claim_next() do slots = slots - 1 end
local due = is_cut_short and now or math.min(soonest('delayed'), soonest('throttled'))
return {
  due < math.huge and math.max(0, due - now) or -1,
  is_full and 'full' or 'open',
  is_exceeded and next(is_slow) == nil and 1 or 0,
  skipped,
  unpack(claimed),
}
