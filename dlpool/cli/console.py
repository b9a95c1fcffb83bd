"""The standard streams of all programs, their errors and their exit codes.

If a stream is closed, on a full disk or without a reader, the command still completes
its task, and the exit code reports the result of the task. Messages that cannot be
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

    The first error is kept in ``error``; with ``raises`` the failed write raises it.
    Later writes and flushes do not fail.
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
        """Write bytes and return their number.

        Waits if a non-blocking descriptor is full.
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

    Only newlines and tabs are written unchanged.
    """

    def write(self, text: str) -> int:
        """Write the text, with control characters and bidirectional marks escaped."""
        return super().write(escape_unsafe(text, keeps="\n\t"))


class _DrawingStream:
    """A ``_CleanText`` stream for a library that draws with control characters.

    Writes text unchanged: the library must escape the texts that it prints.
    """

    def __init__(self, stream: _CleanText) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text unchanged."""
        return io.TextIOWrapper.write(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def stream_for_rich(stream: TextIO) -> IO[str]:
    """Return a standard stream that passes the control characters of rich unchanged.

    The caller must pass all texts through ``clean``.
    """
    return (
        cast("IO[str]", _DrawingStream(stream))
        if isinstance(stream, _CleanText)
        else stream
    )


class OutputLost(LocalFault):
    """Standard output cannot be written."""

    @classmethod
    def of(cls, error: OSError) -> OutputLost:
        """Return the error for an OSError of a write."""
        return cls(f"cannot write to standard output: {error.strerror}")


def run_program(
    name: str, run: Callable[[], int], *, ends_process: bool = False
) -> int:
    """Run a program and return its exit code, or exit with it if ``ends_process``.

    An error is printed as one sentence on standard error, ``NAME: ...``; the class of
    the error determines the exit code. Call this function once, at the start of the
    process, before any file is opened.
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
    """Exit without the interpreter's destruction of all modules and objects.

    This saves as long as the fetch of a small file takes. First do what the interpreter
    does before that destruction: wait for the threads that are not daemons, call the
    ``atexit`` handlers (coverage and logging have some), flush the standard streams.
    Nothing in dlpool needs the destruction: each file is closed where it was used, and
    the kernel releases locks, sockets and memory.
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
    """Return a DlpoolError for ``error`` if a fault of this machine has caused it.

    Returns None otherwise: ``error`` then shows a defect of dlpool.
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

    ``code`` is the exit code of the command. If ``code`` is 0 and output was lost,
    prints an error and returns the exit code of OutputLost. A closed pipe is not an
    error.
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

    Returns None if the program has replaced standard output itself. A closed standard
    descriptor is opened as the null device, so that no file opened later gets its
    number.
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
    """Return a text stream on the descriptor.

    Characters that the encoding of the stream lacks are escaped. If ``old`` is not a
    stream on a file (a test has replaced it, for example), ``old`` is returned
    unchanged.
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
