"""The upload client: sends one file to a dlpool-web in chunks, and resumes uploads.

The server's list of chunks is the only state: the client keeps no file of its own.

Read in this order: ``upload`` (one file from start to end), ``attempt`` (one task at the
server: ask, send, merge), ``connection_worker`` (one connection), ``scheduler`` (which
chunk is sent next), ``retrying``, ``api_client`` and ``responses`` (the HTTP API).

Threads: the caller of ``FileUpload.run``, one per connection (``dlpool-upload``), one
that hashes the file (``dlpool-md5``), and the client's timer.
"""
