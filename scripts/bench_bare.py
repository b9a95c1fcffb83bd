"""What a machine leaves possible to whoever hashes: a server that takes PUT, hashes and writes the body, and no more.

It checks nothing, and survives nothing; one process a processor, one thread a connection.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from dlpool.web.body import BLOCK_SIZE
from tests.conftest import free_port, wait_for_port
from tests.processes import ROOT

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


@contextmanager
def bare(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """It, writing below ``folder``; its URL, and its process, whose children serve."""
    (folder / "bare").mkdir()
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "scripts.bench_bare", str(port), str(folder / "bare")], cwd=ROOT)
    try:
        wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        for child in psutil.Process(process.pid).children():
            child.terminate()
        process.wait(10)


def _serve(client: socket.socket, folder: Path) -> None:
    buffer = memoryview(bytearray(BLOCK_SIZE))
    number = 0
    while count := client.recv_into(buffer):
        head, _, begun = bytes(buffer[:count]).partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        assert length is not None, head
        number += 1
        with (folder / f"{os.getpid()}-{client.fileno()}-{number}").open("wb", buffering=0) as file:
            _receive(client, buffer, begun, int(length[1]), file.fileno())
        client.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")


def _receive(client: socket.socket, buffer: memoryview, begun: bytes, left: int, file: int) -> str:
    hashed = hashlib.md5(begun, usedforsecurity=False)
    os.write(file, begun)
    left -= len(begun)
    while left and (count := client.recv_into(buffer, min(left, BLOCK_SIZE))):
        os.write(file, buffer[:count])
        hashed.update(buffer[:count])
        left -= count
    return hashed.hexdigest()


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    children = []
    for _ in range(os.cpu_count() or 1):
        children.append(os.fork())
        if not children[-1]:
            while True:
                client, _ = listener.accept()
                threading.Thread(target=_serve, args=(client, Path(sys.argv[2])), daemon=True).start()
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
