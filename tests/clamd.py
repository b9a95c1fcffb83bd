"""Debian's clamd over a signature database of its own, and scanners that answer as a test says."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dlpool.config import ScanSettings
from dlpool.scan import open_guard
from dlpool.scan.guard import Guard
from tests.conftest import free_port, wait_until

MIB = 1024 * 1024
STREAM_MAX, FILE_MAX = 8 * MIB, 4 * MIB  # what this clamd takes, and what it looks at
EICAR = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$" + b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
CUSTOM = b"dlpool-test-signature"
_DATABASE = {
    "test.hdb": "44d88612fea8a8f36de82e1278abb02f:68:Eicar-Test-Signature\n",
    "test.ndb": f"Dlpool.Test.Custom:0:*:{CUSTOM.hex()}\n",
}


@contextmanager
def clamd(folder: Path) -> Iterator[tuple[str, str]]:
    """A clamd in ``folder``; its addresses, of a Unix socket and of TCP."""
    (folder / "db").mkdir(parents=True)
    for name, text in _DATABASE.items():
        (folder / "db" / name).write_text(text)
    port = free_port()
    (folder / "clamd.conf").write_text(
        f"DatabaseDirectory {folder}/db\nLocalSocket {folder}/s\nTCPSocket {port}\nTCPAddr 127.0.0.1\n"
        f"TemporaryDirectory {folder}\nForeground yes\nStreamMaxLength {STREAM_MAX}\nMaxFileSize {FILE_MAX}\n"
        "AlertExceedsMax yes\n"
    )
    with (folder / "clamd.log").open("wb") as log:
        process = subprocess.Popen(
            ["/usr/sbin/clamd", "-c", folder / "clamd.conf"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: process.poll() is not None or _answers(str(folder / "s"), port))
        assert process.poll() is None, (folder / "clamd.log").read_text()
        yield f"unix:{folder}/s", f"tcp://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _answers(path: str, port: int) -> bool:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(b"zPING\0")
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return connection.recv(16) == b"PONG\0"
    return False


class Talk:
    """A connection to a scanner that a test plays."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._data = b""

    def say(self, data: bytes) -> None:
        """Send an answer."""
        self.connection.sendall(data)

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes, fewer if the connection ends."""
        while len(self._data) < size:
            data = self.connection.recv(65536)
            if not data:
                break
            self._data += data
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def take_file(self) -> bytes:
        """Return the file of a complete INSTREAM."""
        self.take(10)  # zINSTREAM
        found = b""
        while size := int.from_bytes(self.take(4), "big"):
            found += self.take(size)
        return found


@contextmanager
def played(play: Callable[[Talk], None], folder: Path) -> Iterator[str]:
    """The address of a scanner that does ``play`` with each connection, one after the other."""
    path = folder / "played"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    play(Talk(connection))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"unix:{path}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(20)
            path.unlink()


def guard(folder: Path, **settings: object) -> Guard:
    """A guard whose quarantine is in ``folder``."""
    found = open_guard(ScanSettings(**{"quarantine_dir": str(folder / "quarantine"), **settings}))  # type: ignore[arg-type]
    assert found is not None
    return found
