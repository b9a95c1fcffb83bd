"""Pause a download and let it go on: ``python pause.py URL``."""

import sys
import time

from dlpool import DownloadEngine

engine = DownloadEngine()
task = engine.download(sys.argv[1], "./downloads")
time.sleep(1)
if engine.pause_task(task.id):
    print("paused at", task.downloaded_size)
    time.sleep(1)
    engine.resume_task(task.id)
engine.shutdown()
print(task.status, task.file_path)
