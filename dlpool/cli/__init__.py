"""The three programs: ``dlpool``, ``dlpool-supervisor`` and ``dlpool-web``.

Read in this order: ``main`` (the command line ``dlpool``), ``commands`` (the table of
commands), ``parser`` (arguments, and the table of exit codes) and ``options`` (what
commands share), ``console`` (standard streams), ``fetch`` (a complete command, as an
example); then ``supervisor`` and ``web``. The modules ``*_commands`` and ``*_options``
only declare options. Only the modules of the named command are imported, so that
programs start fast; ``tests/test_start.py`` bounds the number of imported modules.

Modules, with their commands in parentheses: ``items``, ``listfile``, ``headers``,
``fetch_report`` (``fetch``); ``upload``, ``upload_credentials``, ``upload_report``
(``upload``); ``progress``,
``bars``, ``foreground`` (the display of ``fetch`` and ``upload``); ``push``, ``jobs``,
``events``, ``audit``, ``top``, ``health``, ``control``, ``quarantine`` (the queue and
its service); ``configuration``, ``conversion`` (``config``); ``doctor`` and
``doctor_*``; ``setup``. Other modules: ``audit_recorder`` (who changed what),
``tables`` and ``units`` (output), ``container_init`` (process 1) and ``reference``
(generated documents).

Each exception class in ``dlpool.errors`` has an ``exit_code``. ``console`` returns the
exit code of an error; ``parser.EXIT_CODES`` is the list that the help prints.

Each command runs in its own process, on the main thread.
"""
