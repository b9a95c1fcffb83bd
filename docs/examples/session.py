"""Continue where an earlier run was stopped or killed: ``python session.py URL...``."""

import sys

from dlpool import DownloadEngine

with DownloadEngine(session="./downloads/tasks.session") as engine:
    unfinished = {task.url for task in engine.get_all_tasks()}
    print(len(unfinished), "unfinished from before")
    for url in sys.argv[1:]:
        if url not in unfinished:
            engine.download(url, "./downloads")
