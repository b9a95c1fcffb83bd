-- Add a sample to the history. Its id is the queue's time: with the clock of Redis, after it was set back, all samples
-- would have nearly the same id until the clock has caught up.
-- KEYS  1 intake
-- ARGV  1 prefix, 2 samples that are kept, 3 ms for which the history outlives its last sample, then name and value of
--       each figure
-- Returns OK.
local history = prefix .. 'history'
local last = redis.call('XREVRANGE', history, '+', '-', 'COUNT', 1)[1]
local at = math.max(now, last and tonumber(string.match(last[1], '^%d+')) + 1 or 0)
redis.call('XADD', history, 'MAXLEN', '~', ARGV[2], at .. '-0', unpack(ARGV, 4))
redis.call('PEXPIRE', history, ARGV[3])
return 'OK'
