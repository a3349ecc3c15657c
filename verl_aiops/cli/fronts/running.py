"""Runs a line: the trainer writes its log into a file, which is read along, so that a closed terminal stops no run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from verl_aiops.cli.fronts.console import Console, duration
from verl_aiops.cli.fronts.line import FrontError, Line
from verl_aiops.cli.fronts.model import push_at_end, take_model
from verl_aiops.cli.fronts.tasks import Task
from verl_aiops.inputs.shown import one_line, printable

__all__ = ["Tail", "run_line"]

_POLL = 0.2  # seconds
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Ray writes each process's lines through the driver; with colours they are for a terminal, which a file is not
_PLAIN = {"RAY_COLOR_PREFIX": "0", "PYTHONUNBUFFERED": "1"}


class Tail:
    """The whole lines that come to a file, which may not be there yet or be written anew.

    Args:
        path: of the file.
        skip: lines that are not new, wherever they stand: those of the file before.
        start: bytes at its beginning that are passed over.
    """

    def __init__(self, path: Path, skip: frozenset[bytes] = frozenset(), start: int = 0):
        self._path, self._skip, self._at, self._rest = path, skip, start, b""
        self._inode: int | None = None

    def lines(self) -> Iterator[str]:
        """What has come since the last call. A progress bar's carriage return ends a line too."""
        try:
            with self._path.open("rb") as file:
                state = os.fstat(file.fileno())
                if state.st_size < self._at or self._inode not in (None, state.st_ino):
                    self._at, self._rest = 0, b""
                self._inode = state.st_ino
                file.seek(self._at)
                new = file.read()
        except OSError:
            return
        self._at += len(new)
        *whole, self._rest = (self._rest + new).replace(b"\r", b"\n").split(b"\n")
        for line in whole:
            if line not in self._skip:
                yield line.decode("utf-8", errors="replace")

    def end(self) -> Iterator[str]:
        """The same, with a last line that nothing ended."""
        yield from self.lines()
        if self._rest:
            yield self._rest.decode("utf-8", errors="replace")


def run_line(task: Task, line: Line, verbose: bool = False) -> int:
    """Run it to its end; returns the exit code, 128 and the signal's number for a run that a signal ended, or that
    ended otherwise once it was told to stop by one: interrupted while it loads, Python, Hydra and Ray's C++ have
    tracebacks and exit codes of their own, which are no fault of the user's.

    ``verbose``: everything that the run prints is shown.
    """
    try:
        line.out.mkdir(parents=True, exist_ok=True)
        log = line.log.open("ab")
    except OSError as error:
        raise FrontError(f"--out {one_line(line.out)}: {error.strerror}") from None
    metrics = Tail(line.metrics, _aside(task, line))
    output = Tail(line.log, start=line.log.stat().st_size)
    steps = line.value("trainer.total_training_steps") or ""
    console = Console(task, str(line.log), _show, int(steps) if steps.isdigit() else None, time.monotonic)
    began = time.monotonic()

    def show_all(text: str) -> None:
        _show(printable(text))

    with log:
        child = subprocess.Popen(
            line.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **_PLAIN, **line.environment},
            # in the terminal's group Ctrl-C would reach it twice, and `kill -INT` of this process not at all
            start_new_session=True,
        )
    with _Signals(child) as signals:
        while True:
            code = child.poll()
            for text in output.lines() if code is None else output.end():
                (show_all if verbose else console.said)(text)
            for text in metrics.lines():
                if not verbose:
                    console.logged(text)
            if code is not None:
                break
            time.sleep(_POLL)
    if code == 0 and (task.model_from_checkpoint or task.policy_in):
        take_model(task, line, _show)
    took = duration(time.monotonic() - began)
    if code == 0:
        _show(f"done in {took}; all that the run printed: {one_line(line.log)}")
        if repository := line.given.get("push"):
            push_at_end(line.out / "huggingface", repository, _show)
        return 0
    if signals.got is not None and not console.told_error:
        _show(f"stopped by {signals.got.name} after {took}; all that the run printed: {one_line(line.log)}")
        return code if code > 1 else 128 + signals.got
    if not console.told_error and not verbose:
        _show("\n".join(console.last_words()))
    what = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    _show(f"{what} after {took}; all that the run printed: {one_line(line.log)}")
    return code if code >= 0 else 128 - code


def _show(text: str) -> None:
    print(text, flush=True)


def _aside(task: Task, line: Line) -> frozenset[bytes]:
    """The lines of an earlier run's metrics, which are none of this one's.

    verl's SFT trainer opens the file anew, also where it goes on: there the earlier one is set aside.
    """
    if not line.metrics.is_file():
        return frozenset()
    if task.model_from_checkpoint and line.metrics.stat().st_size:
        aside = next(p for n in range(1, 10**6) if not (p := Path(f"{line.metrics}.{n}")).exists())
        os.rename(line.metrics, aside)
        _show(f"verl-aiops: {one_line(line.metrics)} holds metrics of before; they are now {one_line(aside)}")
        return frozenset()
    return frozenset(line.metrics.read_bytes().split(b"\n"))


class _Signals:
    """While a run lasts, signals are its and are passed on, whether a terminal sent them or a program. It ends the run
    in its own way, and this process with it. `got` is the first that came."""

    def __init__(self, child: subprocess.Popen):
        self._child = child
        self.got: signal.Signals | None = None

    def __enter__(self) -> _Signals:
        try:
            self._before = {number: signal.signal(number, self._take) for number in _FORWARDED}
        except ValueError:  # not the main thread: there are no signals to take
            self._before = {}
        return self

    def _take(self, number: int, frame: object) -> None:
        self.got = self.got or signal.Signals(number)
        self._child.send_signal(number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
