"""Servers beside a job of `learning_rm.py`: of reward models and of the judge."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

__all__ = ["free_port", "serving"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serving(command: Sequence[str], port: int, log: Path, wait_s: float = 240.0) -> Iterator[None]:
    """A server in a process of its own, from when its ``/health`` answers until it is no longer needed."""
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            began = time.monotonic()
            while not _healthy(port):
                if server.poll() is not None or time.monotonic() - began > wait_s:
                    said = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                    raise RuntimeError(f"{command[2]}: no server after {time.monotonic() - began:.0f} s:\n{said}")
                time.sleep(0.5)
            yield
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(20)
            with suppress(ProcessLookupError):  # what it has started too
                os.killpg(server.pid, signal.SIGKILL)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except (OSError, ValueError, HTTPException):  # the last: what answers there speaks something else
        return False
