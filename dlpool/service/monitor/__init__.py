"""Metrics of a node: collected by the supervisor, served by the listener.

Read in this order: meter (counters of jobs and transfers), surveying (threads that look
at the queue and at file systems), monitoring (what the main thread writes down, and the
listener).
"""
