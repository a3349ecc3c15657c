"""The Ray worker of the preference trainers: verl's actor worker plus what a reference policy needs."""

from __future__ import annotations

import os

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric
from verl.workers.engine_workers import ActorRolloutRefWorker

__all__ = ["PreferenceWorker"]


class PreferenceWorker(ActorRolloutRefWorker):
    """An actor that can also score pairs with its initial, LoRA-free or separately kept reference weights."""

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def reference_log_probs(self, data: TensorDict) -> TensorDict | None:
        """Answer log-probs under the reference: the kept copy if there is one, else the present weights with
        LoRA adapters off."""
        engine = self.actor.engine
        tu.assign_non_tensor(data, compute_loss=False)
        if engine.reference_state_kept:
            with engine.reference_weights():
                output = self.actor.infer_batch(data)
        else:
            tu.assign_non_tensor(data, no_lora_adapter=engine._is_lora)
            output = self.actor.infer_batch(data)
        return output.cpu() if output is not None else None

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def evaluate_pairs(self, data: TensorDict) -> TensorDict | None:
        """Loss and metrics of a batch of pairs, without a gradient."""
        output = self.actor.infer_batch(data)
        if output is None:
            return None
        metrics = {
            name: Metric.aggregate_dp(value) if isinstance(value, list) and isinstance(value[0], Metric) else value
            for name, value in tu.get(output, "metrics").items()
        }
        return tu.get_tensordict(tensor_dict={}, non_tensor_dict={"metrics": metrics})

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
