"""Training steps that the host leaves to the GPU: launched without waiting, their numbers read later.

A step's numbers (loss, norm of the gradients, metrics) are there when the GPU has done it. While a host waits for them
before it launches the next step, the GPU has nothing to do; and in small steps launching takes the host as long as
computing takes the GPU.
"""

from __future__ import annotations

import functools
import time
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from tensordict import NonTensorData, TensorDict

from verl_aiops.seam.engine import Metric, TrainingWorker
from verl_aiops.seam.engine import tensordict_utils as tu

__all__ = ["PairTrainingWorker"]


class _Mark:
    """A place in the device's queue."""

    def __init__(self):
        self._event = torch.cuda.Event(enable_timing=True) if torch.cuda.is_available() else None
        if self._event is not None:
            self._event.record()
        self._time = time.perf_counter()

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, earlier: _Mark) -> float:
        if self._event is None:
            return self._time - earlier._time
        return earlier._event.elapsed_time(self._event) / 1e3


class _Launched:
    """A step on its way: verl's arguments for reading its numbers, and where it begins and ends."""

    began: _Mark

    def __init__(self, output: dict, how: dict[str, Any]):
        self.output, self.how = output, how
        self.ended = _Mark()

    def cpu(self) -> _Launched:
        """verl asks for it; nothing here is to be read yet."""
        return self


class PairTrainingWorker(TrainingWorker):
    """verl's training worker, with steps that are launched and finished in two calls."""

    # of the step that was launched last, unless it is finished: there the time of the next begins
    _last_end: _Mark | None = None

    @functools.cached_property
    def _reading(self):
        """Reading a number waits for all that its stream was given before: hence a stream for nothing else."""
        return torch.cuda.Stream() if torch.cuda.is_available() else None

    def as_one_mini_batch(self, data: TensorDict) -> TensorDict:
        """What verl's loop over mini-batches does to a batch that is one, without its copies; in place."""
        for name in ("mini_batch_size", "epochs", "seed", "dataloader_kwargs"):
            tu.pop(data, key=name)
        tokens = data["input_ids"].offsets().diff().tolist()
        size = self.engine.get_data_parallel_size()
        if size > 1:
            # for verl's count of FLOPs alone, which is over all ranks
            parts: list[list[int]] = [[] for _ in range(size)]
            torch.distributed.all_gather_object(parts, tokens, self.engine.get_data_parallel_group())
            tokens = list(chain.from_iterable(parts))
        tu.assign_non_tensor(data, global_token_num=NonTensorData(tokens), update_lr_scheduler=True)
        return data

    def launch(self, data: TensorDict) -> _Launched:
        """`train_batch` that does not wait for the device."""
        # the device goes from step to step: what is between them counts
        began = self._last_end or _Mark()
        self.engine.runs_ahead = True
        try:
            launched = self.train_batch(data)
        finally:
            self.engine.runs_ahead = False
        launched.began, self._last_end = began, launched.ended
        return launched

    def finish(self, launched: _Launched) -> dict[str, Any]:
        """Wait until the device has done the step, and not for what it was given since.

        Returns:
            the metrics that `train_batch` returns, each read already, and ``perf/device_seconds``: how long the device
            took from the end of the step before.
        """
        launched.ended.wait()
        if self._last_end is launched.ended:
            # nothing was launched since: what comes now is no part of the next step
            self._last_end = None
        seconds = launched.ended.seconds_since(launched.began)
        # verl would give the time that launching took
        how = {**launched.how, "delta_time": seconds}
        self.engine.reads_alone = True
        try:
            with torch.cuda.stream(self._reading) if self._reading is not None else nullcontext():
                # no .cpu() as in verl: TensorDict waits with it for the whole device, and there are no tensors in this
                done = tu.get(super()._postprocess_output(launched.output, **how), "metrics")
                metrics = {name: v.aggregate() if isinstance(v, Metric) else v for name, v in done.items()}
        finally:
            self.engine.reads_alone = False
        return {**metrics, "perf/device_seconds": seconds}

    def _postprocess_output(self, output: dict, **how):
        if not self.engine.runs_ahead:
            return super()._postprocess_output(output, **how)
        # verl's would read every number here; `finish` lets it, with the same arguments, when they are there
        return _Launched(output, how)
