"""The three programs: ``dlpool``, ``dlpool-supervisor`` and ``dlpool-web``.

Read in this order: ``main`` (the commands of ``dlpool``), ``parser`` and ``options``
(what they share), ``console`` (standard streams, errors and exit codes), ``fetch`` (one
command completely); then ``supervisor`` and ``web``. The modules ``*_commands`` and
``*_options`` declare options only: a command's own module is imported when it runs, so
that ``dlpool --help`` stays fast.

Each command runs in its own process, on the main thread.
"""
