"""The frames between the supervisor and its workers, and the channel for them.

Read in this order: frames (what is sent), results (how an attempt ended), channel (how
frames are sent), counters (of a worker, sent with each status frame). In a supervisor,
the main thread sends and receives frames. In a worker, the main thread receives frames,
and all threads send them.
"""
