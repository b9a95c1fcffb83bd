-- Push the job of a failure record again and delete the record.
--
-- KEYS[1] -> intake list
-- KEYS[2] -> hash of the failure records
-- ARGV[1] -> key prefix
-- ARGV[2] -> field of the record: the URL
-- ARGV[3] -> record as the caller has read it
-- ARGV[4] -> job in the record
--
-- Returns OK, or GONE if the record has changed or was deleted.
if redis.call('HGET', KEYS[2], ARGV[2]) ~= ARGV[3] then return 'GONE' end
expect_own_types()
redis.call('LPUSH', KEYS[1], ARGV[4])
redis.call('HDEL', KEYS[2], ARGV[2])
count('requeued')
return 'OK'
