"""The supervisor of a node and its worker processes.

The supervisor claims jobs from Redis, assigns them to workers, and records how they
end. Read in this order: service (entry point), wiring (composition root), supervisor
(the event loop), reload (of the settings); dispatcher (from the claim of a job to its
result), inflight (the table of jobs), assignment and scheduling (which worker gets a
job), disposition (what a finished attempt leads to), job_log (log lines about jobs);
host_admission with host_limits and host_concurrency (limits of origin hosts), slots
(number of jobs at once), yield_control and yield_policy (slow transfers free their
slots); pool and worker_handle (the worker processes, and the jobs of dead workers);
cleanup and journal (stale part files). Packages: ``queue`` (talks to Redis), ``worker``
(the worker process), ``wire`` (frames between supervisor and workers), ``node`` (this
machine), ``hooks`` (operators' commands), ``monitor`` (metrics).

The modules directly in this package run on the main thread of the supervisor process,
except ``journal``, which the heartbeat thread reads.
"""
