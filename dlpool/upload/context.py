"""What all parts of one upload are given. Values only."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from dlpool.config import TransferSettings
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import RateLimits
from dlpool.transfer.job import Notify
from dlpool.upload.api_client import UploadApiClient, UploadTarget
from dlpool.upload.cancel_scope import UploadCancelScope
from dlpool.upload.localfile import LocalFile
from dlpool.upload.plan import UploadPlan
from dlpool.upload.scheduler import UploadScheduler


@dataclass(frozen=True)
class UploadContext:
    """The surroundings of one round (from a beginning to an end, or to where it begins
    anew)."""

    file: LocalFile
    settings: TransferSettings
    client: HttpClient
    server: UploadApiClient
    scope: UploadCancelScope
    rate: RateLimits
    notify: Notify
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random


@dataclass(frozen=True)
class ServerTask:
    """One task at the server: how the file is cut, how the task is called, and how far
    it is."""

    context: UploadContext
    plan: UploadPlan
    target: UploadTarget
    scheduler: UploadScheduler
