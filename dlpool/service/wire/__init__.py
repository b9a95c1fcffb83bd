"""Frames between the supervisor and its workers.

Read in this order: frames (what is sent), channel (how), endings (how an error ends a
job), tally (counters of a worker that travel with frames).
"""
