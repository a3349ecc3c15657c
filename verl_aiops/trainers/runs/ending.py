"""How a run of ours ends when it does not end by itself: one line that says what lies where, and the exit code.

Ctrl-C and SIGTERM reach the process that ``main_ppo`` was started as, and errors of the workers come back to it. What
Ray, the C++ library below it and Hydra print then buries where the run can be resumed from.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_aiops.trainers.runs.lost_nodes import alive_nodes, lost_nodes

__all__ = ["full_disk", "install", "where_to_resume", "with_ending"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FULL_BELOW = 64 << 20  # bytes: so little is left where a checkpoint's file could not be written
# torch.save and safetensors tell a full disk in words of their own
_FULL = re.compile(
    r"no space left on device|os error 28|disk quota exceeded|PytorchStreamWriter failed writing"
    r"|inline_container\.cc\S* \. unexpected pos",
    re.I,
)


def install() -> None:
    """Put `with_ending` around the ``run_ppo`` of the ``main_ppo`` that this process runs.

    What: the function in the module that runs, ``__main__`` or imported. Why: verl has no hook between the
    configuration and Ray, and only there can an ending be caught. verl 0.9.x; where it is not found, nothing changes.
    """
    for name in ("__main__", "verl.trainer.main_ppo"):
        module = sys.modules.get(name)
        run_ppo = getattr(module, "run_ppo", None)
        code = getattr(run_ppo, "__code__", None)
        if hasattr(run_ppo, "ends_for_verl_aiops"):
            continue
        if code is not None and os.path.basename(code.co_filename) == "main_ppo.py":
            module.run_ppo = with_ending(run_ppo)


def with_ending(run_ppo: Callable) -> Callable:
    """verl's ``run_ppo``, of which a signal, a full disk, or an error of ours makes one line and an exit code."""

    @functools.wraps(run_ppo)
    def run(config, task_runner_class, *args, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            return run_ppo(config, task_runner_class, *args, **kwargs)
        received: list[int] = []
        nodes: dict[str, str] = {}

        def interrupt(number: int, frame: object) -> None:
            received.append(number)
            raise KeyboardInterrupt  # the only exception that Ray lets out of a handler

        def listen() -> None:
            for number in _SIGNALS:
                signal.signal(number, interrupt)

        def begin() -> None:
            # Ray puts handlers of its own in place when it starts
            listen()
            nodes.update(_alive_nodes())

        before = {number: signal.getsignal(number) for number in _SIGNALS}
        listen()
        try:
            return run_ppo(config, _Then(task_runner_class, begin), *args, **kwargs)
        except KeyboardInterrupt:
            number = received[0] if received else signal.SIGINT
            told, code = f"stopped by {signal.Signals(number).name}.", 128 + number
        except Exception as error:
            told = _told(error, config, nodes)
            if told is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            told, code = f"error: {told}", 1
        finally:
            if not received:
                for number, handler in before.items():
                    signal.signal(number, handler)
        for number in _SIGNALS:  # whoever cannot wait for Ray's end
            signal.signal(number, lambda number, frame: os._exit(128 + number))
        with _silence():
            import ray

            ray.shutdown()
        # not before: the workers may have been saving until now
        print(f"verl-aiops: {told} {where_to_resume(config)}", file=sys.stderr, flush=True)
        raise SystemExit(code)

    run.ends_for_verl_aiops = True
    return run


class _Then:
    """A Ray actor class whose making calls a function first."""

    def __init__(self, actor: Any, first: Callable[[], None]):
        self._actor, self._first = actor, first

    def options(self, *args, **kwargs) -> _Then:
        return _Then(self._actor.options(*args, **kwargs), self._first)

    def remote(self, *args, **kwargs):
        self._first()
        return self._actor.remote(*args, **kwargs)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Neither this process nor the C++ below it, nor the workers through it, print anything."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        yield
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for handle in (*kept, nothing):
            os.close(handle)


def where_to_resume(config: DictConfig) -> str:
    """What the run finds when it is started again."""
    from verl_aiops.trainers.runs.checkpoint_health import TRACKER

    trainer = config.trainer
    run = Path(trainer.default_local_dir).absolute()
    again = "the same command goes on from it"
    if trainer.resume_mode != "auto":
        again = "it goes on from it with trainer.resume_mode=auto"
    with contextlib.suppress(OSError, ValueError):
        folder = run / f"global_step_{int((run / TRACKER).read_text())}"
        if folder.is_dir():
            return f"Last checkpoint: {folder}; {again}."
    return f"No checkpoint was saved yet in {run} (trainer.save_freq={trainer.save_freq}): it starts at step 0 again."


def _alive_nodes() -> dict[str, str]:
    import ray

    return alive_nodes(ray.nodes()) if ray.is_initialized() else {}


def _told(error: Exception, config: DictConfig, nodes: Mapping[str, str]) -> str | None:
    """What a user needs of an error: a full disk, the message of an error of ours, or that a node is gone; None for any
    other."""
    cause: BaseException = error
    while isinstance(getattr(cause, "cause", None), BaseException):  # Ray wraps what a worker raised
        cause = cause.cause
    full = full_disk(error, config)
    if full is not None:
        return full
    if type(cause).__module__.partition(".")[0] == "verl_aiops":
        return str(cause)
    import ray

    return lost_nodes(error, nodes, ray.nodes)


def full_disk(error: BaseException, config: DictConfig) -> str | None:
    """The folder whose disk is full, if that is what an error says."""
    if not _FULL.search(str(error)):
        return None
    asked = [OmegaConf.select(config, f"trainer.{key}") for key in ("default_local_dir", "rollout_data_dir")]
    places = [Path(place).absolute() for place in (*asked, os.environ.get("VERL_FILE_LOGGER_PATH"), "/tmp") if place]
    free = {}
    for place in places:
        with contextlib.suppress(OSError, StopIteration):
            free[place] = shutil.disk_usage(next(above for above in (place, *place.parents) if above.is_dir())).free
    # a quota leaves space that nobody may have
    folder = next((place for place, count in free.items() if count < _FULL_BELOW), places[0])
    left = f"{free[folder] / 1e6:.1f} MB are free" if folder in free else "unknown space is left"
    return f"{folder}: the disk is full ({left}). Free up space and start again."
