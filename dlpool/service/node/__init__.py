"""This machine: its identity, lock, disks, embedded Redis, service manager and
watchdog.

Read in this order: node (the id and its lock), locks, launch and redisserver (the
embedded Redis), queueserver (which Redis is used), disks, space and diskfaults (free
space, reservations, faults), notify and watchdog (systemd), collector (the garbage
collector; workers use it, too), culprit (the job that holds the interpreter of a hung
worker).
"""
