"""Where a run's metrics go, and that those of the steps before a resume stay.

verl opens its file logger's file anew at every start, and by default gives all runs one file and one folder of
TensorBoard's.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from verl_aiops.files import move_into_place, write_atomically

__all__ = ["KeptMetrics", "RunLog", "own_places"]


def own_places(trainer: DictConfig) -> None:
    """Metrics and TensorBoard's events into the run's own folder, where the environment names no other place."""
    root = os.path.abspath(trainer.default_local_dir)
    os.environ.setdefault("TENSORBOARD_DIR", os.path.join(root, "tensorboard"))
    if "VERL_FILE_LOGGER_PATH" not in os.environ and "VERL_FILE_LOGGER_ROOT" not in os.environ:
        os.makedirs(root, exist_ok=True)
        os.environ["VERL_FILE_LOGGER_PATH"] = os.path.join(root, "metrics.jsonl")


class KeptMetrics:
    """The file of verl's file logger while it is opened anew.

    Args:
        path: of the file.
        step: lines up to this step belong to the run; with 0 an older file belongs to another run and is set aside.
    """

    def __init__(self, path: str | os.PathLike, step: int):
        self.path, self._beside = Path(path), Path(f"{path}.earlier")
        self._lines: list[str] = []
        if self._beside.is_file():  # a process that ended between the two halves of this
            move_into_place(self._beside, self.path)
        if not self.path.is_file() or not self.path.stat().st_size:
            return
        if step > 0:
            self._lines = [line for line in self._whole_lines() if self._step(line) <= step]
            write_atomically(self._beside, "".join(self._lines))
        else:
            aside = next(p for n in range(1, 10**6) if not (p := Path(f"{self.path}.{n}")).exists())
            os.rename(self.path, aside)
            print(f"verl-aiops: {self.path} holds the metrics of an earlier run; they are now {aside}", flush=True)

    def _whole_lines(self) -> list[str]:
        # the last one may have been cut short
        text = self.path.read_text(encoding="utf-8", errors="replace")
        return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]

    @staticmethod
    def _step(line: str) -> float:
        try:
            return float(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError):
            return 0.0  # not the logger's: not ours to remove

    def put_back(self, file: Any) -> None:
        """Write what was there into the newly opened binary file of the logger."""
        file.write("".join(self._lines).encode("utf-8"))
        self._beside.unlink(missing_ok=True)


class RunLog:
    """Stands before verl's trainer in the bases: logs lie in the run's folder, and are complete after a resume."""

    _kept: KeptMetrics | None = None

    def nothing_left(self) -> bool:
        """Whether the checkpoint that was loaded is of the last step, or beyond; says so."""
        trainer = self.config.trainer
        if trainer.get("val_only", False) or self.global_steps < self.total_training_steps:
            return False
        print(
            f"verl-aiops: nothing left to train: the checkpoint is of step {self.global_steps}, and the run has "
            f"{self.total_training_steps}. To train on, raise trainer.total_training_steps or trainer.total_epochs.",
            flush=True,
        )
        return True

    def fit(self, agent_loop_manager):
        if self.nothing_left():
            return
        own_places(self.config.trainer)
        loggers = self.config.trainer.logger
        loggers = [loggers] if isinstance(loggers, str) else list(loggers)
        if "file" in loggers:
            path = os.environ.get("VERL_FILE_LOGGER_PATH") or os.path.join(
                os.path.expanduser(os.environ["VERL_FILE_LOGGER_ROOT"]),
                self.config.trainer.project_name,
                f"{self.config.trainer.experiment_name}.jsonl",
            )
            self._kept = KeptMetrics(path, self.global_steps)
        # read by `cli/fronts/console.py`
        print(
            f"verl-aiops: training: steps {self.global_steps + 1} to {self.total_training_steps}",
            flush=True,
        )
        super().fit(agent_loop_manager)

    @property
    def logger(self):
        """verl's `Tracking`."""
        if "_tracking" not in self.__dict__:
            raise AttributeError("logger")  # verl's task runner asks whether there is one yet
        return self.__dict__["_tracking"]

    @logger.setter
    def logger(self, tracking):
        self.__dict__["_tracking"] = tracking
        if self._kept is not None and "file" in tracking.logger:
            self._kept.put_back(tracking.logger["file"].fp)
            self._kept = None
        if "tensorboard" in tracking.logger:
            # steps that the checkpoint does not hold are taken again: TensorBoard then leaves out the first ones
            writer = tracking.logger["tensorboard"].writer
            writer.close()
            writer.purge_step = self.global_steps + 1
