-- Stop requests to a host for a while, as its Retry-After demands, and notify all supervisors.
--
-- KEYS[1] -> intake list
-- ARGV[1] -> key prefix
-- ARGV[2] -> host
-- ARGV[3] -> duration in ms
--
-- Returns OK, or KNOWN if the host is held at least that long already.
local host, till = ARGV[2], now + tonumber(ARGV[3])
local HOLDS_MAX, NOTIFIED_MAX = 1000, 1000
local holds = prefix .. 'holds'
redis.call('ZREMRANGEBYSCORE', holds, '-inf', now)
if tonumber(redis.call('ZSCORE', holds, host) or 0) >= till then return 'KNOWN' end
redis.call('ZADD', holds, till, host)
if redis.call('ZCARD', holds) > HOLDS_MAX then redis.call('ZPOPMIN', holds) end
redis.call('PEXPIRE', holds, redis.call('ZRANGE', holds, -1, -1, 'WITHSCORES')[2] - now)
-- The message triggers a heartbeat, whose reply has the held hosts.
for _, sid in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'supervisors', now, '+inf', 'LIMIT', 0, NOTIFIED_MAX)) do
  send_mail(sid, 'hold')
end
return 'OK'
