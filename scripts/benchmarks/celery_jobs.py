"""The job as a task of Celery, acknowledged after it ran, as dlpool and dramatiq do."""

from __future__ import annotations

import os

from celery import Celery

from scripts.benchmarks.peer_jobs import download

# Celery has its own name for a Unix socket
app = Celery("bench", broker=os.environ["BENCH_REDIS"].replace("unix://", "redis+socket://"))
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=4, task_ignore_result=True)
fetch = app.task(download)
