-- Add a sample to the history. Its id is the queue's time: after the clock of Redis was set back, ids by that clock would
-- all be nearly equal until the clock has caught up.
--
-- KEYS[1] -> intake list
-- ARGV[1] -> key prefix
-- ARGV[2] -> number of samples to keep
-- ARGV[3] -> ms after which the history expires if no sample is added
-- then name and value of each figure
--
-- Returns OK.
local history = prefix .. 'history'
local last = redis.call('XREVRANGE', history, '+', '-', 'COUNT', 1)[1]
local at = math.max(now, last and tonumber(string.match(last[1], '^%d+')) + 1 or 0)
redis.call('XADD', history, 'MAXLEN', '~', ARGV[2], at .. '-0', unpack(ARGV, 4))
redis.call('PEXPIRE', history, ARGV[3])
return 'OK'
