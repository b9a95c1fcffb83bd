"""Where the bytes of a download are kept: the ``Target`` protocol, and ``file/``, which
implements it with files.

Read in this order: ``protocol`` (what the core asks of a target), ``state`` (what is
saved of an unfinished download), ``names`` (file names that come from servers and
URLs), ``file`` (the implementation). A target is used by the thread that runs the
download; each connection worker has a writer of its own.
"""
