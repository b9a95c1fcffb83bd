-- A host has said that it does not want to be asked for a while: tell all supervisors.
-- KEYS  1 intake
-- ARGV  1 prefix, 2 host, 3 ms
-- Returns OK, or KNOWN if it is held for as long already.
local host, till = ARGV[2], now + tonumber(ARGV[3])
local HELD_AT_ONCE, TOLD_AT_ONCE = 1000, 1000
local holds = prefix .. 'holds'
redis.call('ZREMRANGEBYSCORE', holds, '-inf', now)
if tonumber(redis.call('ZSCORE', holds, host) or 0) >= till then return 'KNOWN' end
redis.call('ZADD', holds, till, host)
if redis.call('ZCARD', holds) > HELD_AT_ONCE then redis.call('ZPOPMIN', holds) end
redis.call('PEXPIRE', holds, redis.call('ZRANGE', holds, -1, -1, 'WITHSCORES')[2] - now)
for _, sid in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'supervisors', now, '+inf', 'LIMIT', 0, TOLD_AT_ONCE)) do
  local mail = prefix .. 'mail:' .. sid -- they beat at once, and the answer says what is held
  redis.call('RPUSH', mail, 'hold')
  redis.call('LTRIM', mail, -100, -1)
  redis.call('PEXPIRE', mail, 60000)
end
return 'OK'
