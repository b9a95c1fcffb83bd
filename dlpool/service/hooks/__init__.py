"""Operators' commands that run when a job has ended, and files that are archived.

Read in this order: hooks (which commands run, in which thread of the supervisor),
hookprocess (one command, in a process), archiving (compressed copies of what has
ended).
"""
