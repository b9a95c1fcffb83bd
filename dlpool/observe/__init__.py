"""Observability: the log, metrics, health checks and traces of every process.

Read in this order: log (loggers, and the file that they write), processors and console
(from the fields of a log call to a line of the file), values (any value as JSON,
without secrets), logfile and rotation (the file on disk), log_limiter (bursts of equal
lines); metrics (what Prometheus reads), health and http_server (probes, and the server
for them); tracing and spans (OpenTelemetry).

Every process has its own ``Log``, which appends to a shared file on the thread that
logs. Any thread may use a logger. The supervisor runs the HTTP server in the thread
``http`` and cleans up rotated logs in the thread ``log-cleanup``. Each worker exports
spans in a thread of OpenTelemetry.
"""
