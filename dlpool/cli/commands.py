"""The table of the commands of ``dlpool``, and their parsers.

The table holds names of functions, so that only the modules of the command that runs
are imported.
"""

from __future__ import annotations

import argparse
import gc
from importlib import import_module
from typing import Any

from dlpool.cli.parser import EXIT_CODES, HelpFormatter

# For each command: its summary, the function that declares its options, and the
# function that executes it. The names are relative to ``dlpool.cli``.
COMMANDS = {
    "fetch": (
        "download one URL, or a list of them",
        "options.declare_fetch",
        "fetch.run",
    ),
    "upload": (
        "upload files to a dlpool-web",
        "upload_options.declare_upload",
        "upload.run",
    ),
    "push": (
        "queue a job, or a list of them",
        "queue_commands.declare_push",
        "push.run",
    ),
    "jobs": ("list jobs", "queue_commands.declare_jobs", "jobs.list_jobs"),
    "job": ("show one job", "queue_commands.declare_job", "jobs.show_job"),
    "events": (
        "show the events of jobs",
        "queue_commands.declare_events",
        "events.show_events",
    ),
    "health": (
        "check the health of a supervisor",
        "queue_commands.declare_health",
        "health.run",
    ),
    "audit": ("show the audit events", "queue_commands.declare_audit", "audit.run"),
    "stats": (
        "show the statistics of the queue",
        "queue_commands.declare_stats",
        "jobs.show_stats",
    ),
    "cancel": ("cancel jobs", "control_commands.declare_verb", "control.control_jobs"),
    "pause": ("pause jobs", "control_commands.declare_verb", "control.control_jobs"),
    "resume": (
        "resume jobs",
        "control_commands.declare_verb",
        "control.control_jobs",
    ),
    "retry": ("retry jobs", "control_commands.declare_verb", "control.control_jobs"),
    "promote": (
        "promote jobs",
        "control_commands.declare_verb",
        "control.control_jobs",
    ),
    "priority": (
        "change the priority of jobs",
        "control_commands.declare_priority",
        "control.control_jobs",
    ),
    "failed": (
        "list, retry or purge failure records",
        "control_commands.declare_failed",
        "control.failed",
    ),
    "purge": ("remove ended jobs", "control_commands.declare_purge", "control.purge"),
    "queue": (
        "pause or resume the queue",
        "control_commands.declare_queue",
        "control.queue",
    ),
    "nodes": (
        "list, drain or forget nodes",
        "control_commands.declare_nodes",
        "control.nodes",
    ),
    "top": (
        "show the queue as it changes",
        "control_commands.declare_top",
        "top.run",
    ),
    "quarantine": (
        "list, release or delete infected files",
        "admin_commands.declare_quarantine",
        "quarantine.run",
    ),
    "config": (
        "check or show the settings",
        "admin_commands.declare_config",
        "configuration.run",
    ),
    "doctor": (
        "test what the service depends on",
        "admin_commands.declare_doctor",
        "doctor.run",
    ),
    "setup": (
        "install the service for systemd",
        "admin_commands.declare_setup",
        "setup.run",
    ),
}


def add_command(commands: Any, name: str, *, with_options: bool) -> None:
    """Add a command of the table to the subparsers ``commands``.

    Without ``with_options`` the parser of the command has no options. Such a parser
    suffices for the list of commands in the help of ``dlpool``.
    """
    summary, declare, run = COMMANDS[name]
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        epilog=EXIT_CODES,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        add_help=with_options,
    )
    if not with_options:
        return
    parser.set_defaults(run=lambda arguments: _run(run, arguments), command=name)
    _function(declare)(parser)


def _run(name: str, arguments: argparse.Namespace) -> int:
    """Import and call the function ``name``, which executes a command."""
    execute = _function(name)
    if not gc.isenabled():
        # The collector need not look at the modules again: they stay.
        gc.freeze()
        gc.enable()
    code: int = execute(arguments)
    return code


def _function(name: str) -> Any:
    """Return the function ``MODULE.FUNCTION`` of ``dlpool.cli``."""
    module, _, function = name.partition(".")
    return getattr(import_module(f"dlpool.cli.{module}"), function)
