"""Metrics and health of a supervisor.

Read in this order: monitor (what is sampled, and the HTTP server for it), surveys (slow
measurements in threads), metrics_collector (counters of jobs and workers).

The main thread samples its own state once a second. The thread ``http`` serves the
metrics. The threads ``survey-queue`` and ``survey-disk`` take the measurements that may
block.
"""
