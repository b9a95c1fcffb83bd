"""Send HTTP requests and judge their responses.

Read in this order: ``client`` with ``direct_pool`` and ``pools`` (connection pools of a
process), ``cancellable`` (connections and responses), ``source`` (the requests of one
download: redirects, cookies, credentials), ``exchange`` (a request that other threads
can cancel), ``answer`` (what a response means), ``remote_resource`` (versions and their
validators), ``headers``, ``header_fields``, ``digests`` and ``media_types`` (header
fields), ``decoding`` (content codings), ``policy``, ``urls`` and ``unusual_urls`` (what
may be requested), ``credentials`` (``.netrc``), ``connection``, ``tls`` and
``idle_connections`` (how connections are opened and closed), ``network_errors`` (the
translation of the libraries' exceptions), ``host_connections`` and ``limits`` (what all
downloads from one host share). ``urllib3_adapter``, ``requests_adapter`` and
``http_client_adapter`` are the only modules that use private parts of these libraries.

Each connection thread of a download or an upload sends its own requests; one thread of
the process closes idle connections.
"""
