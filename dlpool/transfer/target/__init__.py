"""Where the bytes of a download are kept: the ``Target`` protocol and ``file/``.

Read in this order: ``protocol`` (what the core requires of a target), ``state`` (what
is saved of an unfinished download), ``names`` (file names that come from servers and
URLs), ``file`` (the implementation with files). A target is used by the thread that
runs the download; each connection worker has its own writer.
"""
