-- Hand a supervisor jobs for its free slots; if it asks for that, first those that it holds without knowing.
-- A lost reply loses nothing: a call that says what is known returns what that one had claimed.
-- KEYS  1 intake
-- ARGV  1 prefix, 2 sid, 3 lease ms, 4 order (fifo, lifo), 5 free slots, 6 largest job in bytes,
--       7 number of known jobs, or -1 if only new ones are asked for, 8 most jobs that may be parked,
--       9 most jobs of one host there while jobs of others wait, or 0,
--       10 JSON: how many of each host it has (held), slow hosts (slow), how many of those it has (slow_held) and may
--         have together (slow_most),
--       then "id.fence" of each known job, then an unused random id for each free slot: of the job, if it has none, and
--       of its first claim
-- Returns false if the supervisor is not registered (beat registers it), else
--         {ms until the next delayed job is due or -1,
--         open, paused (queue or node), or full (too many are parked: only they go on),
--         whether a host got more than its part as nobody else was seen to wait: 1, else 0, and 0 where slow hosts are
--         known, how many were passed over for that,
--         {id, fence, raw, size, attempts, crashes, takeovers, created ms, priority, flag, paid, claim, yields}, ...}
local sid, lease, order = ARGV[2], tonumber(ARGV[3]), ARGV[4]
local slots, largest, known_count = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local FIELDS = { 'fence', 'raw', 'size', 'attempts', 'crashes', 'takeovers', 'created', 'priority', 'flag', 'paid', 'claim', 'yields' }
local DUE_AT_ONCE = 200
local PASSED_OVER = 200

if not redis.call('ZSCORE', prefix .. 'supervisors', sid) then return false end

expect_own_types()
redis.call('SCARD', prefix .. 'own:' .. sid)
local claimed = {}

local function hand_over(id)
  local values = redis.pcall('HMGET', job_key(id), unpack(FIELDS))
  claimed[#claimed + 1] = { id, unpack(values) }
end

local fence = tonumber(redis.call('GET', prefix .. 'fence') or 0)
local function own(id, ...)
  fence = redis.call('INCR', prefix .. 'fence')
  redis.call('HSET', job_key(id), 'state', 'running', 'owner', sid, 'fence', fence, 'started', now, ...)
  redis.call('ZADD', prefix .. 'leases', now + lease, id)
  redis.call('SADD', prefix .. 'own:' .. sid, id)
  tell('job_started', id, 'owner', sid)
end

-- A job keeps the random id of its first claim: what was published for it is known by that, and not by an id that a
-- client may give to another job later.
local fresh = 10 + math.max(0, known_count)
local function unused()
  fresh = fresh + 1
  return ARGV[fresh]
end

-- While jobs of other hosts wait, a host gets no more than its part of the slots; while jobs of slow hosts alone wait,
-- the others share what slow hosts do not get.
local part, parts, is_alone, passed, is_slow = tonumber(ARGV[9]), cjson.decode(ARGV[10]), false, 0, {}
for _, host in ipairs(parts.slow or {}) do is_slow[host] = true end

local function has_its_part(host)
  if host == '' or part == 0 then return false end
  return parts.held[host] and parts.held[host] >= part or is_slow[host] and parts.slow_held >= parts.slow_most
end

local is_crowded = part > 0 and next(is_slow) ~= nil
for host in pairs(parts.held or {}) do is_crowded = is_crowded or has_its_part(host) end

local function note_host(raw)
  if part == 0 then return end
  local host = host_of(raw or '')
  parts.held[host] = (parts.held[host] or 0) + 1
  if is_slow[host] then parts.slow_held = parts.slow_held + 1 end
  is_crowded = is_crowded or has_its_part(host)
end

-- The first in a list for which is_wanted says so, from the end that is taken from. It leaves the list.
local function pick(list, is_left, is_wanted)
  local found
  look_through(list, is_left, SEEN, function(one, is_from_left)
    if not is_wanted(one) then
      passed = passed + 1
      return false
    end
    redis.call('LREM', list, is_from_left and 1 or -1, one)
    found = one
    return true
  end)
  return found
end

local function take(id)
  own(id)
  redis.call('HSETNX', job_key(id), 'claim', unused())
  add_to(job_key(id), 'attempts', 1)
  hand_over(id)
  note_host(claimed[#claimed][3])
  if claimed[#claimed][11] then redis.call('HDEL', job_key(id), 'paid') end
end

-- The id that the client gave in its job, if nobody has it. The payload is read, never written anew.
local function given_id(raw)
  if #raw > largest or not string.find(raw, '"dlpool"', 1, true) then return nil end
  local parsed, job = pcall(cjson.decode, raw)
  local id = parsed and type(job) == 'table' and type(job.dlpool) == 'table' and job.dlpool.id
  if type(id) ~= 'string' or #id > 64 or string.find(id, '[^%w_.-]') or id == '' then return nil end
  return redis.call('EXISTS', job_key(id)) == 0 and id or nil
end

local function adopt(raw)
  local claim = unused()
  local id = given_id(raw) or claim
  local kept = #raw > largest and string.sub(raw, 1, 4096) or raw
  own(id, 'raw', kept, 'size', #raw, 'priority', 'normal', 'created', now, 'attempts', 1, 'claim', claim)
  claimed[#claimed + 1] = { id, fence, kept, #raw, 1, false, false, now, 'normal', false, false, claim, false }
  note_host(raw)
  return true
end

local function is_of_others(host) return not has_its_part(host) end
local function is_of_fast(host) return not is_slow[host] end

local function from_intake(suits)
  if suits then
    local found = pick(KEYS[1], order == 'lifo', function(raw) return suits(host_of(raw)) end)
    return found and adopt(found)
  end
  local raw = redis.call(order == 'lifo' and 'LPOP' or 'RPOP', KEYS[1])
  return raw and adopt(raw)
end

local function from_inbox()
  local raw = redis.call('RPOP', prefix .. 'inbox:' .. sid)
  return raw and adopt(raw)
end

-- Ids whose job was cancelled, paused or moved meanwhile are passed over, a few at a time.
local is_cut_short = false
local function from_ready(priority, suits)
  if suits then
    local found = pick(ready_key(priority), false, function(id)
      local state, at, raw = unpack(redis.pcall('HMGET', job_key(id), 'state', 'at', 'raw'))
      return state == 'queued' and (at or priority) == priority and suits(host_of(raw or ''))
    end)
    if found then take(found) end
    return found
  end
  for _ = 1, PASSED_OVER do
    local id = redis.call('RPOP', ready_key(priority))
    if not id then return false end
    local state, at = unpack(redis.pcall('HMGET', job_key(id), 'state', 'at'))
    if state == 'queued' and (at or priority) == priority then
      take(id)
      return true
    end
    pass_place(priority)
  end
  is_cut_short = true
  return false
end

local function from_limited(suits) return from_ready('limited', suits) end
local function from_high(suits) return from_ready('high', suits) end
local function from_normal(suits) return from_ready('normal', suits) end
local function from_low(suits) return from_ready('low', suits) end

local ONLY_LIMITED = { from_inbox, from_limited }
local USUAL = { from_inbox, from_limited, from_high, from_normal, from_intake, from_low }
local LOW_FIRST = { from_inbox, from_limited, from_low, from_high, from_normal, from_intake }
local NORMAL_FIRST = { from_inbox, from_limited, from_normal, from_intake, from_high, from_low }
local INTAKE_FIRST = { from_inbox, from_limited, from_intake, from_high, from_normal, from_low }
local IN_TURN = { [4] = NORMAL_FIRST, [9] = LOW_FIRST, [19] = INTAKE_FIRST }

-- One job in twenty is normal, one is low, and one is from the intake, whatever else waits.
local is_empty, is_full = {}, false
local choices = { { suits = is_of_others, without = {} }, { suits = is_of_fast, without = {} } }
if next(is_slow) == nil then choices[2] = nil end
local function take_from(sources, choice)
  local without = choice and choice.without or is_empty
  for _, source in ipairs(sources) do
    if not without[source] and not is_empty[source] then
      if source(choice and choice.suits) then return true end
      without[source] = true
    end
  end
  return false
end

local function take_next()
  local sources = is_full and ONLY_LIMITED or IN_TURN[fence % 20] or USUAL
  if not is_crowded or is_alone then return take_from(sources) end
  for _, choice in ipairs(choices) do
    if take_from(sources, choice) then return true end
  end
  is_alone = take_from(sources)
  return is_alone
end

local function make_due_ready()
  local due = redis.call('ZRANGEBYSCORE', prefix .. 'delayed', '-inf', now, 'LIMIT', 0, DUE_AT_ONCE)
  for _, id in ipairs(due) do
    redis.call('ZREM', prefix .. 'delayed', id)
    local state, priority, yielded = unpack(redis.pcall('HMGET', job_key(id), 'state', 'priority', 'yielded'))
    if state == 'delayed' then
      if yielded then redis.call('HDEL', job_key(id), 'yielded') end
      enqueue(id, yielded and 'low' or priority, false) -- what has yielded goes behind all that waits
    end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'parked', '-inf', now, 'LIMIT', 0, DUE_AT_ONCE)) do
    redis.call('ZREM', prefix .. 'parked', id)
    let_go_on(id)
  end
end

local function soonest(set) return tonumber(redis.call('ZRANGE', prefix .. set, 0, 0, 'WITHSCORES')[2] or math.huge) end

local known = {}
for index = 11, 10 + known_count do known[ARGV[index]] = true end
local ours = known_count >= 0 and redis.call('SMEMBERS', prefix .. 'own:' .. sid) or {}
for _, id in ipairs(ours) do
  local owner, present = unpack(redis.pcall('HMGET', job_key(id), 'owner', 'fence'))
  if owner ~= sid then
    redis.call('SREM', prefix .. 'own:' .. sid, id)
  elseif not known[id .. '.' .. present] then
    redis.call('ZADD', prefix .. 'leases', now + lease, id)
    redis.call('HDEL', job_key(id), 'suspect')
    hand_over(id)
    note_host(claimed[#claimed][3])
    slots = slots - 1
  end
end
local node = string.sub(sid, 1, -10) -- a sid is its node's id, a hyphen and eight digits
if redis.call('EXISTS', prefix .. 'halted') == 1 or redis.call('SISMEMBER', prefix .. 'drained', node) == 1 then
  empty_inbox(sid, order)
  return { -1, 'paused', 0, 0, unpack(claimed) }
end
if slots > 0 then make_due_ready() end
is_full = redis.call('ZCARD', prefix .. 'parked') + redis.call('LLEN', ready_key('limited')) >= tonumber(ARGV[8])
while slots > 0 and take_next() do slots = slots - 1 end
local due = is_cut_short and now or math.min(soonest('delayed'), soonest('parked'))
return { due < math.huge and math.max(0, due - now) or -1, is_full and 'full' or 'open', is_alone and next(is_slow) == nil and 1 or 0, passed, unpack(claimed) }
