"""One file to a dlpool-web: in chunks, over several connections, going on where an
earlier run ended.

``Upload`` (upload.py) is the whole; the chunks that the server has are the only state,
so nothing is kept here.
"""
