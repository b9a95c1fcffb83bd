"""Commands of the operator: hooks that run when a job has ended, and the archiving of
logs.

Read in this order: runner (which hooks run, in which threads), process (one command in
a process of its own), archiving (compressed logs).

The main thread of the supervisor schedules hooks and archiving. Each hook runs in one
of a few threads named ``hook``, and the archive command in a thread named ``archive``.
"""
