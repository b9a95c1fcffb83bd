-- The slots of a host, for the whole fleet: how many jobs may ask it at once, and how soon after one another they begin.
-- A slot belongs to a ticket until it is given back, or its lease passes.
-- KEYS  1 sorted set of the tickets by the end of their leases, 2 when the next job may begin; both in the host's slot
-- ARGV  1 prefix of the host's keys, 2 verb: take, keep, free; 3 ticket, 4 lease ms
--       5 most jobs at once, or 0; 6 ms from one start to the next, or 0; 7 whether its start is reserved: 1 or 0 (take)
-- Returns take: {ms to wait, whether its start is reserved then}: 0 ms: it has the slot; -1: none is free
--         else OK. Repeated, each does nothing more; but a take whose reply was lost may cost a start.
local verb, ticket, lease, is_paid = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[7]
redis.call('PEXPIRE', prefix .. 'looked:clock', 86400000)

local function hold()
  redis.call('ZADD', KEYS[1], now + lease, ticket)
  redis.call('PEXPIRE', KEYS[1], 2 * lease)
end

if verb == 'free' then
  redis.call('ZREM', KEYS[1], ticket)
  return 'OK'
elseif verb == 'keep' then
  hold()
  return 'OK'
end

local most, apart = tonumber(ARGV[5]), tonumber(ARGV[6])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if not redis.call('ZSCORE', KEYS[1], ticket) then
  if most > 0 and redis.call('ZCARD', KEYS[1]) >= most then return { -1, tonumber(is_paid) } end
  if apart > 0 and is_paid ~= '1' then
    local start = math.max(now, tonumber(redis.call('GET', KEYS[2]) or 0) or 0)
    redis.call('SET', KEYS[2], string.format('%.3f', start + apart), 'PX', math.ceil(start + apart - now))
    if start > now then return { math.ceil(start - now), 1 } end
  end
end
hold()
return { 0, 0 }
