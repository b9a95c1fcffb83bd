-- Count the waiting jobs by host. Read only ARGV[4] entries at each end of a list.
--
-- KEYS[1] -> intake list
-- ARGV[1] -> key prefix
-- ARGV[2] -> supervisor id (sid) of the caller
-- ARGV[3] -> order: fifo or lifo
-- ARGV[4] -> entries to read at each end of a list
--
-- Returns {host, number of jobs, ...}; empty while the queue is paused or the caller's node is drained.
local most, counts, hosts = tonumber(ARGV[4]), {}, {}

local function add(raw)
  local host = host_of(raw)
  if not counts[host] then hosts[#hosts + 1] = host end
  counts[host] = (counts[host] or 0) + 1
end

if accepts_no_jobs(ARGV[2]) then return {} end
scan_list(KEYS[1], ARGV[3] == 'lifo', most, add)
for _, priority in ipairs({ 'limited', 'high', 'normal', 'low' }) do
  scan_list(ready_key(priority), false, most, function(id)
    local state, list, raw = unpack(redis.pcall('HMGET', job_key(id), 'state', 'list', 'raw'))
    if state == 'queued' and (list or priority) == priority then add(raw or '') end
  end)
end
local reply = {}
for _, host in ipairs(hosts) do
  reply[#reply + 1] = host
  reply[#reply + 1] = counts[host]
end
return reply
