-- A failure record becomes a job again.
-- KEYS  1 intake, 2 hash of the failure records that clients see
-- ARGV  1 prefix, 2 field (URL), 3 the record as it was read, 4 the job in it
-- Returns OK, or GONE if the record is not that any more.
if redis.call('HGET', KEYS[2], ARGV[2]) ~= ARGV[3] then return 'GONE' end
expect_own_types()
redis.call('LPUSH', KEYS[1], ARGV[4])
redis.call('HDEL', KEYS[2], ARGV[2])
count('requeued')
return 'OK'
