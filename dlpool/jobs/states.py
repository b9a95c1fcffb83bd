"""The states of a job, and what the end of an attempt leads to. The values are stored
in Redis and in JSON.

A job goes queued -> running -> succeeded, failed or cancelled. A running job can return
to queued, or become delayed (a retry, or ``not_before``) or paused. Delayed and paused
jobs become queued again.
"""

from __future__ import annotations

from enum import Enum


class JobState(str, Enum):
    """The field ``state`` of a job. ``str()`` returns the value."""

    QUEUED = "queued"
    RUNNING = "running"
    DELAYED = "delayed"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    __str__ = str.__str__


class Disposition(str, Enum):
    """What happens to a job when its supervisor finishes an attempt. The value is an
    argument of ``finish.lua``; ``str()`` returns it.

    SUCCEED, FAIL and CANCEL end the job. RETRY delays it. RELEASE, YIELD, PAUSE and
    THROTTLE stop it until a later start, and the attempt does not count. CRASH returns
    it to the front of the queue and counts a crash. FOLLOW lets it wait for the end of
    an equal job.
    """

    SUCCEED = "success"
    FAIL = "failed"
    CANCEL = "cancelled"
    RETRY = "retry"
    RELEASE = "release"
    YIELD = "yield"
    PAUSE = "pause"
    THROTTLE = "throttle"
    CRASH = "crash"
    FOLLOW = "follow"

    __str__ = str.__str__


TERMINAL_DISPOSITIONS = frozenset(
    {Disposition.SUCCEED, Disposition.FAIL, Disposition.CANCEL}
)
