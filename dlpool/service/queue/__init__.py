"""The supervisor's threads that talk to Redis: claiming, heartbeats, recording.

Read in this order: messages (what the threads tell the main thread), redis_state
(whether Redis can be used, and what the threads share), claiming (jobs for free slots),
heartbeat (leases, jobs of dead supervisors), recording (results), spool (results on
disk while Redis is unavailable), sweeping (files of jobs that ended elsewhere).

The threads are named ``claim``, ``heartbeat`` and ``record``. The main thread reads
their messages from the mailbox.
"""
