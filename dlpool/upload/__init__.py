"""The upload client: sends one file to a dlpool-web in chunks, and resumes uploads.

The server's list of chunks is the only state: the client keeps no file of its own.

Read in this order: ``values`` (request and result), ``upload`` (one file from start to
end), ``attempt`` (request the list of stored chunks, send the missing ones, merge),
``context`` (what the parts of an attempt share), ``plan`` (how a file is divided into
chunks), ``scheduler`` (which chunk is sent next), ``connection_worker`` (one
connection), ``localfile`` and ``file_hash`` (read and hash the file), ``retrying``
(when a failed request is repeated), ``capabilities`` (limits of the server),
``api_client`` and ``responses`` (the HTTP API).

Threads: the caller of ``FileUpload.run``, one thread per connection
(``dlpool-upload``), one that hashes the file (``dlpool-md5``), and the client's timer.
"""
