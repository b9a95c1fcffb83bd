-- Acquire, renew or release a slot of an origin host. The slots are shared by all supervisors of a Redis: they limit the
-- jobs that contact the host at once, and the rate at which jobs start. A slot belongs to a job until it is released or its
-- lease expires.
--
-- KEYS[1] -> sorted set of the host: holders by the end of their leases (ms)
-- KEYS[2] -> string of the host: earliest start of the next job (ms); in the same Cluster slot as KEYS[1]
-- ARGV[1] -> prefix of the host's keys
-- ARGV[2] -> acquire, renew or release
-- ARGV[3] -> holder: intake list and job id
-- ARGV[4] -> lease in ms
-- ARGV[5] -> acquire: maximum of jobs at once, or 0
-- ARGV[6] -> acquire: ms between two starts, or 0
-- ARGV[7] -> acquire: 1 if the job's start is reserved already, else 0
--
-- acquire returns {wait, reserved}:
--   wait -> 0: the job has a slot; -1: no slot is free; else ms until its start
--   reserved -> 1 if the job's start is reserved, else 0
-- renew and release return OK.
-- A repeated call changes nothing, except that an acquire whose reply was lost may have reserved a start that is not used.
local action, holder, lease, is_reserved = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[7]
redis.call('PEXPIRE', prefix .. 'clock', 86400000)

local function renew()
  redis.call('ZADD', KEYS[1], now + lease, holder)
  redis.call('PEXPIRE', KEYS[1], 2 * lease)
end

if action == 'release' then
  redis.call('ZREM', KEYS[1], holder)
  return 'OK'
elseif action == 'renew' then
  renew()
  return 'OK'
end

local most, apart = tonumber(ARGV[5]), tonumber(ARGV[6])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if not redis.call('ZSCORE', KEYS[1], holder) then
  if most > 0 and redis.call('ZCARD', KEYS[1]) >= most then return { -1, tonumber(is_reserved) } end
  if apart > 0 and is_reserved ~= '1' then
    local start = math.max(now, tonumber(redis.call('GET', KEYS[2]) or 0) or 0)
    redis.call('SET', KEYS[2], string.format('%.3f', start + apart), 'PX', math.ceil(start + apart - now))
    if start > now then return { math.ceil(start - now), 1 } end
  end
end
renew()
return { 0, 0 }
