"""Uploads that the server keeps.

A task receives chunks or tus bodies, and one file is published from them. Read in this
order: ``backend.py`` (the interfaces), ``upload_requests.py`` and ``values.py`` (what
goes in and out), ``states.py`` (the state machine of a task), ``errors.py`` (codes),
then ``disk/``, the implementation on a file system. ``opening.py`` selects the
implementation; another one (a bucket, say) would be a package beside ``disk/`` that
implements ``UploadBackend`` and ``Locker``. ``names.py``, ``content_types.py`` and
``executables.py`` decide which names and types of files are accepted.

Nothing here knows HTTP. The code runs in the request threads of the worker processes of
``dlpool-web``, and the sweep in the janitor thread of one of them.
"""
