"""The worker process: runs jobs and reports to the supervisor.

Read in this order: process (the main loop), job_run (one attempt of a job). A worker
has a main thread that receives frames, one thread for each slot, and the threads named
``report`` and ``clean``. Each download starts threads for its connections.
"""
