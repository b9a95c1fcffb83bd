-- Requeue all jobs of supervisors that have exited, and remove their registrations.
-- A supervisor calls this script at its start for its own earlier sids. An operator may be wrong, so a call for an operator
-- has a grace: it does nothing if a lease is valid or expired within the grace.
--
-- KEYS[1] -> intake list
-- ARGV[1] -> key prefix
-- ARGV[2] -> grace in ms that must have passed since the end of each lease, or '' to requeue at once
-- ARGV[3] -> order: fifo or lifo
-- then the sids of the supervisors
--
-- Returns {left, ids of the requeued jobs...}:
--   left -> number of jobs that the supervisors still have: call again until it is 0;
--     -1: nothing was done, because the grace of a lease has not passed
local grace, order = tonumber(ARGV[2]), ARGV[3]
local HELD_MAX = 200 -- of each supervisor in one call
local reply = { 0 }

expect_own_types()
if grace then
  for index = 4, #ARGV do
    local expires = tonumber(redis.call('ZSCORE', prefix .. 'supervisors', ARGV[index]) or 0)
    if expires > now - grace then return { -1 } end
  end
end
for index = 4, #ARGV do
  local sid = ARGV[index]
  empty_inbox(sid, order)
  for _, id in ipairs(redis.call('SRANDMEMBER', prefix .. 'held:' .. sid, HELD_MAX)) do
    local state, owner, priority = unpack(redis.pcall('HMGET', job_key(id), 'state', 'owner', 'priority'))
    if state == 'running' and owner == sid then
      requeue_running(id, sid, priority)
      reply[#reply + 1] = id
    end
    redis.call('SREM', prefix .. 'held:' .. sid, id)
  end
  local left = jobs_of(sid)
  reply[1] = reply[1] + left
  if left == 0 then deregister(sid) end
end
if #reply > 1 then wake() end
return reply
