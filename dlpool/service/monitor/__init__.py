"""Metrics and health of a supervisor.

Read in this order: monitor (what is sampled, and the HTTP server for it), surveys (slow
measurements in threads), metrics_collector (counters of jobs and workers).

The main thread samples its own state once a second. The threads ``http``,
``survey-queue`` and ``survey-disk`` serve the metrics and measure what may block.
"""
