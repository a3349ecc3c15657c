"""Jobs that depend on each other, run side by side on several devices; what was done before is not done again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Job", "Runner", "key_of"]

_TAIL = 30


@dataclass(frozen=True)
class Job:
    """``do(folder, run)`` does it in its folder; ``run(command, env)`` is how it starts a process. ``settings`` are
    what its result depends on beside its ``needs``; ``on_device``: whether it needs one of the devices."""

    name: str
    do: Callable[[Path, Callable], None]
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    on_device: bool = False


def key_of(job: Job, jobs: Mapping[str, Job]) -> str:
    """The same for the same settings of a job and of all that it comes from."""
    text = json.dumps([job.settings, [key_of(jobs[name], jobs) for name in job.needs]], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


class Runner:
    """Runs jobs in folders of ``work``.

    Args:
        devices: a number of a GPU, or None for the CPU, once for each job that may run on it at a time.
        host: how many jobs without a device may run at a time.
        minutes: after which nothing is started, and what runs is ended.
    """

    def __init__(self, work: Path, devices: Sequence[int | None], *, host: int = 2, minutes: float | None = None):
        self.work, self.host = work, host
        self._free = list(devices)
        self._many = len(devices) > 1
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._lock = threading.Condition()
        self._processes: set[subprocess.Popen] = set()
        self.seconds: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.late = False

    def run(self, jobs: Sequence[Job]) -> None:
        """All jobs that can be done; `failed` then has the others by reason, `seconds` what each one took."""
        named = {job.name: job for job in jobs}
        self._keys = {name: key_of(job, named) for name, job in named.items()}
        waiting = [job for job in jobs if not self._is_done(job)]
        for job in waiting:
            if (self.work / job.name / "done.json").is_file():
                print(f"{job.name}: was done with other settings", flush=True)
        done = {job.name for job in jobs} - {job.name for job in waiting}
        busy: set[str] = set()
        hosts = 0
        if done:
            print(f"{len(done)} of {len(jobs)} jobs were done before", flush=True)
        with self._lock:
            while waiting or busy:
                self._end_if_late()
                for job in list(waiting):
                    lost = [name for name in job.needs if name in self.failed]
                    if lost or self.late:
                        self.failed[job.name] = "no time left" if self.late else f"needs {lost[0]}"
                        waiting.remove(job)
                    elif done.issuperset(job.needs) and (self._free if job.on_device else hosts < self.host):
                        waiting.remove(job)
                        busy.add(job.name)
                        device = self._take() if job.on_device else None
                        hosts += not job.on_device
                        threading.Thread(target=self._one, args=(job, device), daemon=True).start()
                self._lock.wait(timeout=1.0)
                for name in [name for name in busy if name in self.seconds or name in self.failed]:
                    busy.remove(name)
                    hosts -= not named[name].on_device
                    if name not in self.failed:
                        done.add(name)

    def _take(self) -> int | None:
        """The device with the most free places."""
        chosen = max(self._free, key=self._free.count)
        self._free.remove(chosen)
        return chosen

    def _is_done(self, job: Job) -> bool:
        marker = self.work / job.name / "done.json"
        if not marker.is_file():
            return False
        noted = json.loads(marker.read_text())
        if noted["key"] == self._keys[job.name]:
            self.seconds[job.name] = noted["seconds"]
            return True
        return False

    def note_done(self, jobs: Sequence[Job]) -> None:
        """Put into `seconds` what was done before of jobs that were not asked for."""
        named = {job.name: job for job in jobs}
        self._keys = {name: key_of(job, named) for name, job in named.items()}
        for job in jobs:
            self._is_done(job)

    def _one(self, job: Job, device: int | None) -> None:
        folder = self.work / job.name
        started, why = time.monotonic(), None
        try:
            key = folder / "key"
            if folder.exists() and not (key.is_file() and key.read_text() == self._keys[job.name]):
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            key.write_text(self._keys[job.name])
            print(f"{job.name}: begins{'' if device is None else f' on GPU {device}'}", flush=True)
            job.do(folder, lambda command, env=None: self._process(command, env or {}, folder / "log.txt", device))
            seconds = time.monotonic() - started
            (folder / "done.json").write_text(json.dumps({"key": self._keys[job.name], "seconds": round(seconds, 1)}))
        except (Exception, SystemExit) as error:
            why = f"{type(error).__name__}: {error}"
        with self._lock:
            if job.on_device:
                self._free.append(device)
            if why is None:
                self.seconds[job.name] = seconds
                print(f"{job.name}: done in {seconds:.0f} s", flush=True)
            else:
                self.failed[job.name] = "no time left" if self.late else why
                print(f"{job.name}: FAILED: {self.failed[job.name]}", flush=True)
            self._lock.notify_all()

    def _process(self, command: Sequence[str], env: Mapping[str, str], log: Path, device: int | None) -> None:
        more = {} if device is None else {"CUDA_VISIBLE_DEVICES": str(device)}
        if self._many:
            more["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "4")
        with log.open("ab") as file:
            file.write(f"$ {' '.join(map(str, command))}\n".encode())
            file.flush()
            process = subprocess.Popen(
                list(map(str, command)),
                env={**os.environ, **more, **env},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        with self._lock:
            self._processes.add(process)
        code = process.wait()
        with self._lock:
            self._processes.discard(process)
        if code:
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
            raise RuntimeError(f"exit code {code}; the end of {log}:\n    " + "\n    ".join(tail))

    def _end_if_late(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline and not self.late:
            self.late = True
            print("no time left: what runs is ended, the same command goes on from here", flush=True)
            self.end()

    def end(self) -> None:
        """End what this runner has started, Ray's processes with it."""
        for process in self._processes:
            try:
                os.killpg(process.pid, signal.SIGTERM)
            except ProcessLookupError:
                pass
