"""The output of a download on a file system: part file, state file and target.

Read in this order: ``output`` (the ``Target`` itself, and the order of writes),
``selection`` (the choice of the target's path), ``partopen`` and ``partfile`` (the
locked part file), ``partwriter`` (writes to it), ``statefile`` (the committed state),
``publish`` (how a later run recognizes a published file), ``targetpath`` (which paths
are allowed), ``cleanup`` (removal of files that no run needs). This code runs on the
thread that runs the download, except that each connection worker uses its own writer.
``cleanup`` also runs in the worker process after a job has ended.
"""
