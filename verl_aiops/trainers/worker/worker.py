"""The Ray worker of the preference trainers: verl's actor worker plus what a reference policy needs."""

from __future__ import annotations

import os
import sys
import time
from contextlib import redirect_stdout
from typing import Any

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils.device import get_device_name

from verl_aiops.kernels.memory import keep_memory
from verl_aiops.seam.engine import ActorRolloutRefWorker, Metric
from verl_aiops.seam.engine import tensordict_utils as tu
from verl_aiops.trainers.worker.run_ahead import PairTrainingWorker

__all__ = ["PreferenceWorker"]


def _merged(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics of all data-parallel ranks as one number each."""
    return {
        name: Metric.aggregate_dp(value) if isinstance(value, list) and isinstance(value[0], Metric) else value
        for name, value in metrics.items()
    }


class PreferenceWorker(ActorRolloutRefWorker):
    """An actor that can also score pairs with its initial, LoRA-free or separately kept reference weights."""

    actor_worker_cls = PairTrainingWorker

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not self._is_rollout:
            # with a rollout in the same process verl itself decides on its memory
            keep_memory()
        # the step that the device was left with, by its number
        self._launched: dict[int, Any] = {}
        # when the step before was done, by time.perf_counter
        self._step_ended: float | None = None

    @register(dispatch_mode=Dispatch.ALL_TO_ALL, blocking=False)
    def update_pairs(self, data: TensorDict) -> dict[int, dict[str, Any]]:
        """`update_actor` for this worker's own part of a step's batch.

        The trainer cuts and sends the parts while the step before is computed, and asks for the result when it needs
        it. Only for plain data parallelism, where each worker has a part of its own.

        Args:
            data: the part, with the number of the step under ``step``, and under ``follows`` whether this worker was
                given nothing to do since the step before.

        Returns:
            metrics of the steps that are done, by number; the same from every worker. A GPU that trains alone is left
            to work on this step, and the metrics are those of the one before: this step's come with the next call, or
            from `finish_updates`. Among them ``perf/device_seconds``, by the clock of this worker: the trainer asks
            for a result long after it was there, or long before.
        """
        step, follows = tu.pop(data, key="step"), tu.pop(data, key="follows")
        size = self.actor.engine.get_data_parallel_size()
        one_mini_batch = tu.get_non_tensor_data(data, key="mini_batch_size", default=None) == size * len(data)
        if one_mini_batch:
            # one optimizer step: nothing to be cut, and the whole step can be left to the device
            self.actor.as_one_mini_batch(data)
            if self._runs_ahead():
                before, self._launched = self._launched, {step: self.actor.launch(data)}
                return self._finished(before)
        # from the end of the step before: what is between two steps counts, as it does where a device runs ahead
        began = self._step_ended if follows and self._step_ended is not None else time.perf_counter()
        if one_mini_batch:
            metrics = _merged(tu.get(self.actor.train_batch(data), "metrics"))
        else:
            metrics = tu.get(self.update_actor(data), "metrics")
        self._step_ended = time.perf_counter()
        return {step: {**metrics, "perf/device_seconds": self._step_ended - began}}

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def finish_updates(self) -> dict[int, dict[str, Any]]:
        """Wait for the step that `update_pairs` has left to the device; returns its metrics by its number."""
        before, self._launched = self._launched, {}
        return self._finished(before)

    def _runs_ahead(self) -> bool:
        return get_device_name() == "cuda" and self.actor.engine.can_run_ahead

    def _finished(self, launched: dict[int, Any]) -> dict[int, dict[str, Any]]:
        return {step: self.actor.finish(update) for step, update in launched.items()}

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def reference_log_probs(self, data: TensorDict) -> TensorDict | None:
        """Answer log-probs under the reference: the kept copy if there is one, else the present weights with
        LoRA adapters off."""
        engine = self.actor.engine
        # the objective would want the log-probs that this is to make
        tu.assign_non_tensor(data, compute_loss=False)
        if engine.reference_state_kept:
            with engine.reference_weights():
                output = self.actor.infer_batch(data)
        else:
            # verl's worker takes the adapters off around the forward pass; without LoRA it has none to take off
            tu.assign_non_tensor(data, no_lora_adapter=engine._is_lora)
            output = self.actor.infer_batch(data)
        return output.cpu() if output is not None else None

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def answer_scores(self, data: TensorDict) -> TensorDict | None:
        """Of a reward model: the score of each row's answer, (rows, 1) under ``answer_scores``."""
        tu.assign_non_tensor(data, compute_loss=False)
        output = self.actor.infer_batch(data)
        return output.cpu() if output is not None else None

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def evaluate_pairs(self, data: TensorDict) -> TensorDict | None:
        """Loss and metrics of a batch of pairs, without a gradient."""
        output = self.actor.infer_batch(data)
        if output is None:
            return None
        return tu.get_tensordict(tensor_dict={}, non_tensor_dict={"metrics": _merged(tu.get(output, "metrics"))})

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def weights_not_finite(self) -> list[str]:
        """Names of the weights of which this rank holds a number that is NaN or infinite."""
        return self.actor.engine.weights_not_finite()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL, blocking=False)
    def write_model(self, folder: str) -> None:
        """The policy as a plain folder of transformers, with adapters merged, into the empty ``folder``."""
        with redirect_stdout(sys.stderr):  # verl's merger talks
            self.actor.engine.write_model(folder)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def sync_reference(self, mixup: float) -> None:
        self.actor.engine.sync_reference(mixup)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_reference(self, folder: str) -> None:
        """Write this rank's part of a moving reference."""
        os.makedirs(folder, exist_ok=True)
        torch.save(self.actor.engine.reference_state(), self._reference_file(folder))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_reference(self, folder: str) -> None:
        """Read it back; the number of ranks must be that of the run that wrote it, as for verl's own shards."""
        self.actor.engine.load_reference_state(torch.load(self._reference_file(folder), weights_only=True))

    def _reference_file(self, folder: str) -> str:
        return os.path.join(folder, f"reference_world_size_{self.world_size}_rank_{self.rank}.pt")
