"""Uploads a file with tuspy: ``python -m tests.tus_upload ENDPOINT FILE STATE [STOP]``.

It goes on where the run before ended, says at which byte, and after STOP bytes waits to be killed.
"""

from __future__ import annotations

import sys

from tusclient.client import TusClient
from tusclient.storage.filestorage import FileStorage

CHUNK = 8 * 1024 * 1024


def main(endpoint: str, path: str, state: str, stop: str = "") -> None:
    """Upload, piece by piece."""
    uploader = TusClient(endpoint).uploader(
        path,
        chunk_size=CHUNK,
        metadata={"filename": "from python.bin"},
        store_url=True,
        url_storage=FileStorage(state),  # type: ignore[no-untyped-call]
        retries=3,
        retry_delay=1,
    )
    print(f"begins at {uploader.offset}", flush=True)
    while uploader.offset < uploader.get_file_size():  # type: ignore[no-untyped-call]
        uploader.upload_chunk()  # type: ignore[no-untyped-call]
        if stop and uploader.offset >= int(stop):
            print("waits", flush=True)
            sys.stdin.read()
    print(uploader.url)


if __name__ == "__main__":
    main(*sys.argv[1:])
