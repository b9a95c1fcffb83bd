"""The three programs: ``dlpool``, ``dlpool-supervisor`` and ``dlpool-web``.

Read in this order: ``main`` (the commands of ``dlpool``), ``parser`` (arguments, and
the table of exit codes) and ``options`` (what commands share), ``console`` (standard
streams), ``fetch`` (one command completely); then ``supervisor`` and ``web``. The
modules ``*_commands`` and ``*_options`` declare options only: a command's own module is
imported when it runs, so that ``dlpool --help`` stays fast.

By command: ``items``, ``listfile``, ``headers``, ``fetch_report`` (``fetch``);
``upload``, ``upload_credentials``, ``upload_report`` (``upload``); ``progress``,
``bars``, ``foreground`` (the display of ``fetch`` and ``upload``); ``push``, ``jobs``,
``events``, ``audit``, ``top``, ``health``, ``control``, ``quarantine`` (the queue and
its service); ``configuration``, ``conversion`` (``config``); ``doctor`` and
``doctor_*``; ``setup``. Also ``audit_recorder`` (who changed what), ``tables`` and
``units`` (output), ``container_init`` (process 1) and ``reference`` (generated
documents).

Exit codes: each exception class in ``dlpool.errors`` has its ``exit_code``; ``console``
returns it, and ``parser.EXIT_CODES`` is the list that the help prints.

Each command runs in its own process, on the main thread.
"""
