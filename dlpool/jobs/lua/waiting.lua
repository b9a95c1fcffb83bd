-- The hosts of the jobs that wait for a slot: of the next ones of each list.
-- KEYS  1 intake
-- ARGV  1 prefix, 2 sid of who asks, 3 order (fifo, lifo), 4 most jobs of each list that are looked at
-- Returns {host, number of jobs, ...}; nothing while the queue is paused or the node drained
local AT_ONCE, BYTES = 25, 4 * MIB
local most, counts, hosts = tonumber(ARGV[4]), {}, {}

local function add(raw)
  local host = host_of(raw)
  if not counts[host] then hosts[#hosts + 1] = host end
  counts[host] = (counts[host] or 0) + 1
end

local function each(list, is_left, see)
  local bytes = 0
  for start = 0, most - AT_ONCE, AT_ONCE do
    local from, to = start, start + AT_ONCE - 1
    if not is_left then from, to = -to - 1, -from - 1 end
    local some = redis.call('LRANGE', list, from, to)
    for _, one in ipairs(some) do
      see(one)
      bytes = bytes + #one
    end
    if #some < AT_ONCE or bytes > BYTES then return end
  end
end

local node = string.sub(ARGV[2], 1, -10)
if redis.call('EXISTS', prefix .. 'halted') == 1 or redis.call('SISMEMBER', prefix .. 'drained', node) == 1 then return {} end
each(KEYS[1], ARGV[3] == 'lifo', add)
for _, priority in ipairs({ 'limited', 'high', 'normal', 'low' }) do
  each(ready_key(priority), false, function(id)
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
