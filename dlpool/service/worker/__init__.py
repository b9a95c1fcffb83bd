"""The worker process: it runs jobs in threads and reports to the supervisor.

Read in this order: process (its main loop), run (one job in its thread), affinity
(which CPU it runs on), traceparent (the trace id of its requests).
"""
