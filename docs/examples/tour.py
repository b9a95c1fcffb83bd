"""Tasks, callbacks and statistics, one after the other: ``python tour.py URL URL...``.

The first file is also fetched alone.
"""

import sys
import time

from dlpool import DownloadEngine

URL, URLS = sys.argv[1], sys.argv[1:]

engine = DownloadEngine(max_workers=3)
task = engine.download(url=URL, output_path="./downloads", filename="my-download.zip")
while task.status == "downloading":
    print(
        f"{task.progress:.1%} {task.speed / 1048576:.2f} MB/s "
        f"{task.downloaded_size / 1048576:.2f} MB"
    )
    time.sleep(1)
print(task.file_path if task.status == "completed" else task.error)

engine.register_progress_callback(lambda t: print(t.id, t.progress))
engine.register_completion_callback(
    lambda t: print(t.id, t.status, t.file_path or t.error)
)

tasks = [engine.download(u, "./downloads") for u in URLS]
while any(t.status in ("pending", "downloading") for t in tasks):
    print(sum(t.status == "completed" for t in tasks), "of", len(tasks))
    time.sleep(1)

task = engine.download(URL, "./downloads")
time.sleep(1)
if engine.pause_task(task.id):
    time.sleep(1)
    engine.resume_task(task.id)
engine.shutdown()
