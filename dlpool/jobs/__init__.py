"""The queue in Redis: its keys, the transitions of jobs, views of it, and the commands
that operators and clients use.

Read in this order: ``states`` (states of a job), ``keys`` (names of the keys),
``pushed_job`` (a job as clients push it), ``transitions`` with ``scripts`` and ``lua/``
(one Lua script per transition), ``queue_clock`` (the time that all scripts use),
``client_records`` and ``outbox`` (what clients read); then ``job_admin``,
``queue_admin`` and ``nodes`` (commands), ``job_view``, ``job_listing``, ``queue_views``
and ``failure_records`` (reading), ``event_stream``, ``history``, ``audit_events`` and
``audit_stream`` (records of past changes), ``host_slots`` (limits of origin hosts),
``confinement`` with ``path_walk`` (paths of jobs); last ``connection``,
``connection_routing``, ``redis_address``, ``embedded_socket``, ``server_check`` and
``redis_values`` (Redis itself).

The package starts no thread or process. The supervisor's queue threads, dlpool-web and
the commands call it; all classes with a Redis client are as thread-safe as the client.
"""
