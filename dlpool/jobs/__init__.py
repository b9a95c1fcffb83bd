"""The queue in Redis: its keys, the transitions of jobs, views of it, and commands of
operators and clients.

Read in this order: ``states`` (states of a job), ``keys`` (names of the keys),
``pushed_job`` (a job as clients push it), ``transitions`` with ``scripts`` and ``lua/``
(one script a transition), ``client_records`` and ``outbox`` (what clients read); then
``job_admin``, ``queue_admin`` and ``nodes`` (commands), ``job_view``, ``job_listing``
and ``queue_views`` (reading), ``host_slots`` (limits of origin hosts), ``confinement``
(paths of jobs); last ``connection`` and ``connection_routing`` (Redis itself).

The package starts no thread or process. The supervisor's queue threads, dlpool-web and
the commands call it; all classes with a Redis client are as thread-safe as the client.
"""
