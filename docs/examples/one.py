"""One file, with its progress, to the end: ``python one.py URL``."""

import sys
import time

from dlpool import DownloadEngine

URL = sys.argv[1]

engine = DownloadEngine(max_workers=3)
task = engine.download(url=URL, output_path="./downloads", filename="my-download.zip")
while task.status == "downloading":
    print(
        f"{task.progress:.1%} {task.speed / 1048576:.2f} MB/s "
        f"{task.downloaded_size / 1048576:.2f} MB"
    )
    time.sleep(1)
print(task.file_path if task.status == "completed" else task.error)
engine.shutdown()
