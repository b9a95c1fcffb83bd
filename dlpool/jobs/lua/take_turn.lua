-- Elect one of several callers for work that is done once per interval.
--
-- KEYS[1] -> intake list
-- ARGV[1] -> key prefix
-- ARGV[2] -> name of the key that records the turn, without the prefix
-- ARGV[3] -> interval in ms
--
-- Returns 1 if it is the caller's turn, else false.
return take_turn(ARGV[2], tonumber(ARGV[3])) and 1
