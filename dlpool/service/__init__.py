"""Run the supervisor and its worker processes.

The supervisor claims jobs from Redis, assigns them to workers, and records how they
end. Read in this order: supervisor (the event loop of its main thread), crew (which
worker gets a job), pool and handle (the processes), ledger (the jobs in flight),
verdict (what a finished attempt leads to), service (start and end). The packages:
``queue`` (threads that talk to Redis), ``worker`` (the worker process), ``wire``
(frames between both), ``node`` (this machine), ``hooks`` (operators' commands),
``monitor`` (metrics).
"""
