"""Upload storage on a file system, shared by the threads and processes of a machine.

No state is kept in memory alone. Read in this order:

- ``backend.py`` assembles the modules; ``layout.py`` finds and locks tasks;
  ``task_folder.py`` and ``task_record.py``: one task, its chunks, metadata and locks
- a chunk: ``chunk_receiver.py``, ``staged_chunk.py``, ``chunk_file.py``
- a merge: ``merger.py``, ``assembly.py``, ``merge_output.py``, ``recovery.py`` (after a
  kill), ``scanning.py``, ``ownership.py``
- tus: ``tus_uploads.py``, ``append_lock.py``, ``append_session.py``,
  ``concatenation.py``, ``part_claims.py``
- lists and limits: ``task_index.py``, ``change_log.py``, ``task_summary.py``,
  ``catalog.py``, ``quota.py``, ``capacity.py``
- removal: ``removal.py``
- files: ``file_locks.py``, ``safe_open.py``, ``durability.py``, ``os_errors.py``

The chunk files are authoritative; ``record.json`` is a cache beside them. The
exclusive lock of a task is held for milliseconds, never while a body is received or a
file is assembled.
Only ``dlpool.storage.open_backend`` imports this package.
"""
