"""A list of any length as one call, with one summary: ``python batch.py URL...``."""

import sys

from dlpool import download_many

summary = download_many(
    sys.argv[1:], "./downloads", max_workers=8, session="./downloads/batch.session"
)
print(
    f"{summary.done} done, {summary.earlier} earlier, {summary.size} bytes, "
    f"{summary.speed:.0f} bytes/s"
)
for failed in summary.failed:
    print(failed.url, failed.error)
