"""The standard streams, errors and exit codes of all programs.

A command completes its task even if its streams cannot be written (closed, disk full,
no reader). The exit code reports the result of the task. Messages that cannot be
written to standard error are dropped. If the output of a command is lost, the command
fails only if its task was to print. The exit code of an error is the ``exit_code`` of
its class (``dlpool.errors``). Control characters are escaped here, once for all
programs.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, NoReturn, TextIO, cast

from dlpool.disk_errors import FAULTS, is_out_of_descriptors, local_fault
from dlpool.errors import DlpoolError, InternalError, LocalFault, OutOfFiles
from dlpool.usertext import escape_unsafe

INTERRUPTED = 130
STDIN, STDOUT, STDERR = 0, 1, 2


class _Stream(io.RawIOBase):
    """A raw stream that writes to a descriptor, and drops all bytes after an error.

    ``error`` keeps the first error. With ``raises``, the write that fails raises the
    error. All later writes succeed.
    """

    def __init__(self, descriptor: int, *, raises: bool) -> None:
        self.error: OSError | None = None
        self.is_reported = False  # the error was reported to the user
        self._descriptor = descriptor
        self._raises = raises

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data: object) -> int:
        """Write some or all bytes of ``data`` and return their number.

        Waits while a non-blocking descriptor is full. Dropped bytes count as written.
        """
        view = memoryview(data)  # type: ignore[arg-type]
        while self.error is None:
            try:
                return os.write(self._descriptor, view)
            except BlockingIOError:
                self._wait()
            except OSError as error:
                self.error = error
                if self._raises:
                    raise
        return view.nbytes

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        poll.poll()


class _CleanText(io.TextIOWrapper):
    """A text stream that escapes every character that could control a terminal.

    Newlines and tabs are not escaped.
    """

    def write(self, text: str) -> int:
        """Escape control characters and bidirectional marks, and write the text."""
        return super().write(escape_unsafe(text, keeps="\n\t"))


class _DrawingStream:
    """A wrapper that writes text unchanged to a ``_CleanText`` stream.

    It is for a library that draws with control characters.
    """

    def __init__(self, stream: _CleanText) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text unchanged."""
        return io.TextIOWrapper.write(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def stream_for_rich(stream: TextIO) -> IO[str]:
    """Return ``stream`` in a form that writes control characters unchanged.

    The library ``rich`` draws with control characters. The caller must pass each text
    that it prints through ``clean``.
    """
    return (
        cast("IO[str]", _DrawingStream(stream))
        if isinstance(stream, _CleanText)
        else stream
    )


class OutputLost(LocalFault):
    """Writing to standard output failed."""

    @classmethod
    def of(cls, error: OSError) -> OutputLost:
        """Return the error for an OSError of a write."""
        return cls(f"cannot write to standard output: {error.strerror}")


def run_program(
    name: str, run: Callable[[], int], *, ends_process: bool = False
) -> int:
    """Run a program and return its exit code; with ``ends_process`` exit with it.

    Prints an error as one sentence on standard error, ``NAME: ...``. The class of the
    error determines the exit code. Without ``ends_process``, a SystemExit of the
    program is raised again. Call this function once, at the start of the process,
    before any file is opened.
    """
    stdout = _prepare()
    try:
        code = run()
    except SystemExit as ended:
        code = (
            ended.code
            if isinstance(ended.code, int)
            else 0
            if ended.code is None
            else 1
        )
        code = _finished(name, stdout, code)
        if not ends_process:
            raise SystemExit(code) from None
        _end_process(code)
    except DlpoolError as error:
        code = _failed(name, error)
    except KeyboardInterrupt:  # before the command has installed its handlers
        code = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - top of a process
        is_output = isinstance(error, BrokenPipeError) or (
            stdout is not None and error is stdout.error
        )
        code = (
            0
            if is_output
            else _failed(name, _foreseen(error) or InternalError.of(error))
        )
    code = _finished(name, stdout, code)
    if ends_process:
        _end_process(code)
    return code


def _end_process(code: int) -> NoReturn:
    """Exit, but skip the interpreter's destruction of all modules and objects.

    The destruction takes as long as the fetch of a small file. Nothing in dlpool needs
    it: each file is closed where it was used, and the kernel releases locks, sockets
    and memory. The other steps of the interpreter's exit are done: wait for the threads
    that are not daemons, call the ``atexit`` handlers, flush the standard streams.
    """
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
    finally:
        os._exit(code)


def show_lines(lines: Iterable[str]) -> None:
    """Print lines to standard output and flush them.

    Raises OutputLost, or BrokenPipeError if the reader has closed the pipe.
    """
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputLost.of(error) from error


@contextmanager
def reporting_result() -> Iterator[None]:
    """Run a block that prints the result of a finished command.

    If the block cannot write to standard output, the error is printed on standard error
    and does not change the exit code. A closed pipe is not reported.
    """
    try:
        yield
    except BrokenPipeError:
        pass
    except OutputLost as error:
        print(
            f"dlpool: {error}; the exit code reports the result of the command",
            file=sys.stderr,
        )
        if (stdout := _raw_of(sys.stdout)) is not None:
            stdout.is_reported = True


def _foreseen(error: Exception) -> DlpoolError | None:
    """Return a DlpoolError for an error that has a known cause on this machine.

    Returns None for every other error; the caller reports it as a defect of dlpool.
    """
    if not isinstance(error, OSError):
        return None
    if is_out_of_descriptors(error):
        return OutOfFiles(
            "too many files are open: raise the limit (ulimit -n, LimitNOFILE of a "
            "unit)"
        )
    if error.filename is not None and error.errno in FAULTS:
        return local_fault(f"use {os.fsdecode(error.filename)}", error)
    try:
        os.getcwd()  # noqa: PTH109 - the start does not import pathlib
    except FileNotFoundError:
        is_ours = isinstance(error, FileNotFoundError) and error.filename is None
        return (
            LocalFault("the working directory has been deleted: change to another one")
            if is_ours
            else None
        )
    return None


def _failed(name: str, error: DlpoolError) -> int:
    print(f"{name}: {error}", file=sys.stderr)
    return error.exit_code


def _finished(name: str, stdout: _Stream | None, code: int) -> int:
    """Flush standard output and return the exit code of the program.

    ``code`` is the exit code of the command. If ``code`` is 0, and output was lost
    without a report, prints an error and returns the exit code of OutputLost. A closed
    pipe is not an error.
    """
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    if (
        stdout is None
        or stdout.error is None
        or stdout.is_reported
        or isinstance(stdout.error, BrokenPipeError)
    ):
        return code
    if code:
        return code
    return _failed(name, OutputLost.of(stdout.error))


def _prepare() -> _Stream | None:
    """Replace the standard streams; return the raw stream of standard output.

    Returns None if a test, for example, has already replaced standard output. Opens
    each closed standard descriptor as the null device: otherwise the next opened file
    would get its number.
    """
    with suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
            os.set_inheritable(descriptor, True)
        os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(STDIN, closefd=False)  # noqa: SIM115
    if sys.stderr is sys.__stderr__:
        sys.stderr = _wrapped(STDERR, sys.stderr, raises=False)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _wrapped(STDOUT, sys.stdout, raises=True)
    return _raw_of(sys.stdout)


def _wrapped(descriptor: int, old: TextIO | None, *, raises: bool) -> TextIO:
    """Return a text stream on the descriptor, with the encoding of ``old`` or UTF-8.

    Characters that the encoding lacks are escaped. Returns ``old`` itself if it is not
    a stream on a file, for example because a test has replaced the stream.
    """
    if not isinstance(old, io.TextIOWrapper | None):
        return old
    return _CleanText(
        io.BufferedWriter(_Stream(descriptor, raises=raises)),
        encoding="utf-8" if old is None else old.encoding,
        errors="backslashreplace",
        # With python -u only write_through is set, which would leave the bytes in the
        # BufferedWriter.
        line_buffering=old is not None and (old.line_buffering or old.write_through),
        write_through=old is not None and old.write_through,
    )


def _raw_of(stream: TextIO) -> _Stream | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Stream) else None
