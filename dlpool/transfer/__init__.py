"""Download one URL to one output.

Read in this order: ``job`` (the order, its result and its progress), ``transfer``
(attempts until the download is done), ``attempt`` (checkpoints, verification,
publishing), ``probe`` (the first request), ``worker`` and ``workers`` (connection
threads), ``scheduler`` and ``chunks`` (who fetches which bytes), ``range_request`` and
``retry`` (what is requested again, and when), ``speed_monitor`` (which connections are
replaced), ``sample_check`` (bytes of one version). ``http/`` sends the requests;
``target/`` keeps the bytes.

The code runs in any process: the calling thread runs a transfer, one thread a
connection fetches chunks, a hash thread follows, and one timer thread serves all
transfers of a process. It knows neither Redis nor other processes, and sets up no log.
"""
