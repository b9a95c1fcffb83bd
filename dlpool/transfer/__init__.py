"""Download one URL to one output.

Read in this order: ``job`` (a download job, its result and progress), ``transfer``
(attempts until the download is done), ``attempt`` (checkpoints, verification,
publishing), ``context`` (what the threads of an attempt share), ``probe`` and
``planning`` (the first request, and the plan that follows from its response),
``worker`` and ``workers`` (connection threads), ``small_body`` (a file that one read
brings), ``scheduler`` and ``chunks`` (which thread fetches which bytes),
``range_request`` (a request for a range of the file), ``retry`` (what is requested
again, and when), ``connection_admission`` (refused connections), ``aimd`` (the adaptive
number of connections), ``speed_monitor`` (which connections are replaced), ``timer``
(the thread of periodic checks), ``evidence`` and ``sample_check`` (whether all bytes
are of one version), ``hashing`` and ``scanning`` (checks of the content),
``space_rules`` (disk space). ``http/`` sends the requests; ``target/`` keeps the bytes.
``server_inspection`` examines a server without a download.

``Transfer`` creates a ``Source`` (``http/source``), which makes all requests. Another
URL scheme than http and https would need another source, and
``http/urls.split_credentials`` would have to accept the scheme.

The code runs in any process. The calling thread runs a transfer, each connection has a
thread that fetches chunks, a hash thread hashes the written bytes, and one timer thread
serves all transfers of a process. This package uses neither Redis nor other processes,
and does not configure logging.
"""
