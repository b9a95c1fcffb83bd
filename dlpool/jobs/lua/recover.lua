-- Give back the jobs of supervisors that are gone.
-- Without sids: leases that have passed, in two phases. A lease that passed is suspect first and gets a grace; only when
-- that passes too, the job is taken. So after an outage of Redis, when all leases have passed, their owners come first.
-- With sids: the caller knows that these are gone (they were its own, before it was restarted): taken at once. Who is no
-- supervisor (sid '') only believes it: nothing is taken, and -1 returned, if one's lease has not passed since the grace.
-- KEYS  1 intake
-- ARGV  1 prefix, 2 sid of the caller, 3 grace ms, 4 order (fifo, lifo), then sids that are known to be gone
-- Returns {number of jobs suspected, ids of the jobs that were given back...}; with sids, the number is of what they
--         still have: call it until that is 0.
local caller, grace, order = ARGV[2], tonumber(ARGV[3]), ARGV[4]
local AT_ONCE = 200
local LEASES_AT_ONCE = 1000
local TURN_MS = 4000 -- one supervisor at a time looks
local SILENCE_MS = 20000 -- when nobody has looked for so long, Redis was away, and what was suspected before is worth nothing
local LOST_KEPT = 100 -- of those that have fallen silent; fewer than are looked after at once
local reply = { 0 }

local function give_back(id, owner, priority)
  redis.call('HSET', job_key(id), 'fence', redis.call('INCR', prefix .. 'fence'))
  add_to(job_key(id), 'takeovers', 1)
  disown(id, owner)
  enqueue(id, priority, true)
  count('recovered')
  tell('job_recovered', id, 'owner', owner)
  reply[#reply + 1] = id
end

local function things_of(sid)
  return redis.call('SCARD', prefix .. 'own:' .. sid) + redis.call('LLEN', prefix .. 'inbox:' .. sid)
end

local function strike_off(sid)
  redis.call('ZREM', prefix .. 'supervisors', sid)
  redis.call('DEL', prefix .. 'supervisor:' .. sid, prefix .. 'mail:' .. sid)
end

local function take_back(sid)
  empty_inbox(sid, order)
  for _, id in ipairs(redis.call('SRANDMEMBER', prefix .. 'own:' .. sid, AT_ONCE)) do
    local state, owner, priority = unpack(redis.pcall('HMGET', job_key(id), 'state', 'owner', 'priority'))
    if state == 'running' and owner == sid then give_back(id, sid, priority) end
    redis.call('SREM', prefix .. 'own:' .. sid, id)
  end
  local left = things_of(sid)
  reply[1] = reply[1] + left
  if left == 0 then strike_off(sid) end
end

local function was_silent()
  local looked = redis.call('GET', prefix .. 'looked')
  redis.call('SET', prefix .. 'looked', now)
  return not looked or now - looked > SILENCE_MS
end

local function judge(id, is_trusted)
  local state, owner, priority, suspect = unpack(redis.pcall('HMGET', job_key(id), 'state', 'owner', 'priority', 'suspect'))
  if state ~= 'running' then
    redis.call('ZREM', prefix .. 'leases', id)
  elseif suspect and is_trusted then
    give_back(id, owner, priority)
  else
    redis.call('HSET', job_key(id), 'suspect', now)
    redis.call('ZADD', prefix .. 'leases', now + grace, id)
    reply[1] = reply[1] + 1
  end
end

-- A list has no more stale places than places: that count heals itself, whatever has happened to the lists.
local function mend_counts()
  for _, list in ipairs({ 'limited', 'high', 'normal', 'low' }) do
    local places = redis.call('LLEN', ready_key(list))
    if (tonumber(redis.call('HGET', prefix .. 'stale', list) or 0) or math.huge) > places then
      redis.call('HSET', prefix .. 'stale', list, places)
    end
    if places == 0 then redis.call('HDEL', prefix .. 'stale', list) end
  end
end

-- Leases may have been evicted; the sets of the supervisors that are gone still name their jobs.
local function look_after(sid)
  empty_inbox(sid, order)
  for _, id in ipairs(redis.call('SRANDMEMBER', prefix .. 'own:' .. sid, AT_ONCE)) do
    if redis.pcall('HGET', job_key(id), 'owner') ~= sid then
      redis.call('SREM', prefix .. 'own:' .. sid, id)
    else
      redis.call('ZADD', prefix .. 'leases', 'NX', now + grace, id)
    end
  end
end

expect_own_types()
if #ARGV > 4 then
  for index = 5, #ARGV do
    local passes = tonumber(redis.call('ZSCORE', prefix .. 'supervisors', ARGV[index]) or 0)
    if caller == '' and passes > now - grace then return { -1 } end
  end
  for index = 5, #ARGV do take_back(ARGV[index]) end
elseif take_turn('recoverer', TURN_MS) then
  local is_trusted = not was_silent()
  local passed = redis.call('ZRANGEBYSCORE', prefix .. 'leases', '-inf', now, 'LIMIT', 0, LEASES_AT_ONCE)
  for _, id in ipairs(passed) do judge(id, is_trusted) end
  local gone = redis.call('ZRANGEBYSCORE', prefix .. 'supervisors', '-inf', now, 'LIMIT', 0, AT_ONCE)
  local excess = redis.call('ZCOUNT', prefix .. 'supervisors', '-inf', now) - LOST_KEPT
  for number, sid in ipairs(gone) do
    look_after(sid)
    if number <= excess and things_of(sid) == 0 then strike_off(sid) end
  end
  redis.call('ZREMRANGEBYSCORE', prefix .. 'supervisors', '-inf', now - LOST_MS)
  mend_counts()
end
if #reply > 1 then wake() end
return reply
