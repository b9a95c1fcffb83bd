"""Run the supervisor and its worker processes.

The supervisor claims jobs from Redis, assigns them to workers, and records how they
end. Read in this order: service (entry point), wiring (composition root), supervisor
(the event loop), dispatcher (the way of a job), inflight (the table of jobs),
disposition (what a finished attempt leads to), host_admission (limits of origin hosts),
pool and worker_handle (the processes). Packages: ``queue`` (talks to Redis), ``worker``
(the worker process), ``wire`` (frames between both), ``node`` (this machine), ``hooks``
(operators' commands), ``monitor`` (metrics).

The modules on top run on the main thread of the supervisor process, except ``journal``,
which the heartbeat thread reads.
"""
