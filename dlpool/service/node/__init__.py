"""This machine: identity, locks, disks, the embedded Redis, the service manager and the
watchdog.

Read in this order: node (the id of the node and its state folder), locks (lock files);
redis_server (which Redis is used), embedded_redis (a private one), launch (processes
that exit with their parent); disk_guard (free space for new jobs), disk_rules (what
jobs leave free), disk_faults (errors of a job or of the node); systemd and watchdog
(reports that the service still works); hung_jobs (the job that blocks a worker).

The main thread of the supervisor runs these modules, except for the thread ``space`` of
the disk guard. Workers use launch, disk_rules, disk_faults and hung_jobs.
"""
