"""Uploads that the server keeps: chunks become a task, and a task becomes a file.

Read in this order: ``backend.py`` (the interfaces), ``upload_requests.py`` and
``values.py`` (arguments and results), ``states.py`` (the state machine of a task),
``errors.py`` (codes), then ``disk/``, the implementation on a file system.
``opening.py`` selects the implementation. Another implementation (in an object store,
for example) is a package beside ``disk/`` that implements ``UploadBackend`` and
``Locker``. ``names.py``, ``content_types.py`` and ``executables.py`` decide which names
and types of files are accepted.

Nothing here knows HTTP. The code runs in the request threads of the worker processes of
``dlpool-web``, and the sweep in the janitor thread of one of them.
"""
