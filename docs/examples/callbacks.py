"""Be told instead of looking: ``python callbacks.py URL...``."""

import sys

from dlpool import DownloadEngine

with DownloadEngine() as engine:
    engine.register_progress_callback(lambda t: print(t.id, t.progress))
    engine.register_completion_callback(
        lambda t: print(t.id, t.status, t.file_path or t.error)
    )
    for url in sys.argv[1:]:
        engine.download(url, "./downloads")
