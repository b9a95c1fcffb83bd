"""The frames between the supervisor and its workers, and the channel for them.

Read in this order: frames (what is sent), results (how an attempt ended), channel (how
frames are sent), counters (of a worker, sent with each status frame). The main threads
of supervisor and workers receive; all threads of a worker send.
"""
