-- The hosts of the jobs that wait for a slot: of the next and the last ones of each list.
-- KEYS  1 intake
-- ARGV  1 prefix, 2 sid of who asks, 3 order (fifo, lifo), 4 most jobs of each end of a list that are looked at
-- Returns {host, number of jobs, ...}; nothing while the queue is paused or the node drained
local most, counts, hosts = tonumber(ARGV[4]), {}, {}

local function add(raw)
  local host = host_of(raw)
  if not counts[host] then hosts[#hosts + 1] = host end
  counts[host] = (counts[host] or 0) + 1
end

local node = string.sub(ARGV[2], 1, -10)
if redis.call('EXISTS', prefix .. 'halted') == 1 or redis.call('SISMEMBER', prefix .. 'drained', node) == 1 then return {} end
look_through(KEYS[1], ARGV[3] == 'lifo', most, add)
for _, priority in ipairs({ 'limited', 'high', 'normal', 'low' }) do
  look_through(ready_key(priority), false, most, function(id)
    local state, at, raw = unpack(redis.pcall('HMGET', job_key(id), 'state', 'at', 'raw'))
    if state == 'queued' and (at or priority) == priority then add(raw or '') end
  end)
end
local reply = {}
for _, host in ipairs(hosts) do
  reply[#reply + 1] = host
  reply[#reply + 1] = counts[host]
end
return reply
