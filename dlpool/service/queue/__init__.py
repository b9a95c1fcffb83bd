"""The threads of a supervisor that talk to Redis.

Read in this order: messages (what they post to the main thread), link (the state of the
connection), claiming (the thread that claims jobs), heartbeat (leases, lost
supervisors), recording (results), spool (results that are kept on disk while Redis is
away), sweeping (orphaned jobs).
"""
