"""The three programs: ``dlpool``, ``dlpool-supervisor`` and ``dlpool-web``.

Read in this order: ``main`` (the command line ``dlpool``), ``commands`` (the table of
commands), ``parser`` (arguments, and the table of exit codes) and ``options`` (code of
many commands), ``console`` (standard streams), ``fetch`` (a complete command, as an
example); then ``supervisor`` and ``web``. The modules ``*_commands`` and ``*_options``
only declare options. A program imports only the modules of the command that it runs;
this makes it start fast. ``tests/test_start.py`` limits the number of imported modules.

The other modules, by purpose:
the command fetch: ``items``, ``listfile``, ``headers``, ``fetch_report``;
the command upload: ``upload``, ``upload_credentials``, ``upload_report``;
the display of fetch and upload: ``progress``, ``bars``, ``foreground``;
the queue and its service: ``push``, ``jobs``, ``events``, ``audit``, ``top``,
``health``, ``control``, ``quarantine``;
the machine: ``configuration``, ``conversion``, ``doctor``, ``doctor_*``, ``setup``;
the audit of commands: ``audit_recorder``; output: ``tables``, ``units``;
process 1 of a container: ``container_init``; generated documents: ``reference``.

Each exception class in ``dlpool.errors`` has an ``exit_code``. ``console`` returns the
exit code of an error; ``parser.EXIT_CODES`` is the list that the help prints.

Each command runs in its own process, on the main thread.
"""
