"""The states of a job, and what the end of an attempt leads to. The values are stored
in Redis and in JSON.

Most jobs go queued -> running -> succeeded. Other jobs end as failed or cancelled. A
delayed job waits for a point in time or for its host; a paused job waits for an
operator.
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
    """What happens to a job when it leaves its supervisor. The value is an argument of
    ``finish.lua``; ``str()`` returns it.

    SUCCEED, FAIL and CANCEL end the job. The head of ``finish.lua`` describes all
    values.
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
