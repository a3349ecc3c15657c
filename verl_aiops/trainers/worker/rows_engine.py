"""verl's FSDP engines for policies and critics of GRPO and PPO, with what rows begin with in common computed once."""

from __future__ import annotations

import functools
from contextlib import nullcontext

import numpy as np
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead
from verl.workers.engine.utils import detach_tree
from verl.workers.utils.padding import response_from_nested

from verl_aiops.trainers.batch import ROWS_LOG_PROBS
from verl_aiops.trainers.logprobs.layout import SharedLayout
from verl_aiops.trainers.logprobs.micro_batches import cut
from verl_aiops.trainers.logprobs.shared_prompt import label_values, state_values
from verl_aiops.trainers.worker.module import FastModule
from verl_aiops.verl_patches.micro_batches import PLANNED

__all__ = ["SharedPolicyEngine", "SharedValueEngine"]

COLUMNS = ("prompts", "responses", "response_mask")
# what verl's own forward pass does beside log-probs and entropies
_VERLS_ALONE = ("distillation_use_topk", "distillation_only", "calculate_sum_pi_squared")


class SharedRows(FastModule):
    """Micro-batches in which rows that share their beginnings stand together, each gone through the model as a tree.

    The rows' numbers come out as verl's own forward pass gives them, nested over prompt and answer with the value of a
    token at the place before it; where ``response_mask`` is 0, and in the prompt, they are 0.
    """

    verls_model_type: str

    def __init__(self, model_config, *args, **kwargs):
        # the registry found this class by its own name; verl's loader knows verl's
        model_config.model_type = self.verls_model_type
        super().__init__(model_config, *args, **kwargs)

    def forward_backward_batch(self, data: TensorDict, loss_function, forward_only=False):
        if not self._shares(data):
            return super().forward_backward_batch(data, loss_function, forward_only=forward_only)
        plan = self._cut(data)
        # verl restores the order of rows in what it cuts dynamically
        tu.assign_non_tensor(data, use_dynamic_bsz=True, **{PLANNED: tuple(plan.rows)})
        output = super().forward_backward_batch(data, loss_function, forward_only=forward_only)
        seen, tokens, torn = self._over_workers([plan.seen, plan.tokens, plan.torn])
        output["metrics"]["shared_tokens_ratio"] = [seen / tokens]
        output["metrics"]["torn_prompts"] = [float(torn)]
        return output

    def _over_workers(self, counts: list[int]) -> list[int]:
        """Sums, the same on every worker: a mean of the workers' own ratios would not be that of all tokens."""
        group = self.get_data_parallel_group()
        if torch.distributed.get_world_size(group) == 1:
            return counts
        summed = torch.tensor(counts, device=get_device_id())
        torch.distributed.all_reduce(summed, group=group)
        return summed.tolist()

    def _shares(self, data: TensorDict) -> bool:
        temperature = data["temperature"] if "temperature" in data.keys() else 1.0
        if isinstance(temperature, torch.Tensor) and len(temperature.unique()) > 1:
            return False
        return not any(tu.get_non_tensor_data(data, key=key, default=False) for key in _VERLS_ALONE)

    def _cut(self, data: TensorDict):
        """This worker's micro-batches: as many as every other worker of the sharded model has."""
        columns = [[row.numpy() for row in data[name].cpu().unbind()] for name in COLUMNS[:2]]
        dynamic = tu.get_non_tensor_data(data, key="use_dynamic_bsz", default=True)
        limit = (
            {"most_tokens": data["max_token_len_per_gpu"]}
            if dynamic
            else {"most_rows": data["micro_batch_size_per_gpu"]}
        )
        plan = cut(*columns, **limit)
        group = self.get_data_parallel_group()
        if torch.distributed.get_world_size(group) > 1:
            number = torch.tensor(len(plan.rows), device=get_device_id())
            torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX, group=group)
            if int(number) > len(plan.rows):
                plan = cut(*columns, **limit, at_least=int(number))
        return plan

    def forward_step(self, micro_batch: TensorDict, loss_function, forward_only):
        if not self._shares(micro_batch):
            return super().forward_step(micro_batch, loss_function, forward_only)
        columns = [micro_batch[name].cpu().unbind() for name in COLUMNS]
        # whatever goes to the GPU goes before the forward pass: afterwards a copy waits for it
        layout = SharedLayout(*columns).to(get_device_id())
        places = torch.from_numpy(_places_in_rows(*columns[:2])).to(get_device_id(), non_blocking=True)
        micro_batch = micro_batch.to(get_device_id())
        autocast = (
            nullcontext()
            if self._autocast_dtype == torch.float32
            else torch.autocast(device_type=get_device_name(), dtype=self._autocast_dtype)
        )
        with autocast:
            values = self._label_values(layout, micro_batch, loss_function is not None)
            model_output = {
                name: _in_rows(column, places[layout.slots], micro_batch["input_ids"])
                for name, column in values.items()
            }
            if loss_function is None:
                loss, metrics = torch.tensor(1.0, device=get_device_name()), {}
            else:
                loss, metrics = self._loss(loss_function, model_output, micro_batch)
        return loss, {"model_output": detach_tree(model_output), "loss": loss.detach().item(), "metrics": metrics}

    def _loss(self, loss_function, model_output: dict, data: TensorDict):
        return loss_function(model_output=model_output, data=data, dp_group=self.get_data_parallel_group())


class SharedPolicyEngine(SharedRows, FSDPEngineWithLMHead):
    verls_model_type = "language_model"

    def _label_values(self, layout: SharedLayout, data: TensorDict, training: bool) -> dict[str, torch.Tensor]:
        temperature = data["temperature"] if "temperature" in data.keys() else 1.0
        temperature = float(temperature[0] if isinstance(temperature, torch.Tensor) else temperature)
        entropy = tu.get_non_tensor_data(data, key="calculate_entropy", default=False)
        values = label_values(self.module, layout, temperature=temperature, entropy=entropy)
        return {"log_probs": values[:, 0], "entropy": values[:, 1]} if entropy else {"log_probs": values}

    def forward_backward_batch(self, data: TensorDict, loss_function, forward_only=False):
        if loss_function is not None and "old_log_probs" not in data.keys():
            loss_function = functools.partial(_loss_of_only_update, loss_function)
        wanted = not forward_only and tu.get_non_tensor_data(data, key=ROWS_LOG_PROBS, default=False)
        if wanted:
            tu.assign_non_tensor(data, return_model_output=True)
        output = super().forward_backward_batch(data, loss_function, forward_only=forward_only)
        if wanted:
            # an update gives nothing but metrics back to the trainer; verl gathers those of workers in their order
            rows = response_from_nested(output["model_output"].pop("log_probs"), data["response_mask"])
            output["metrics"][ROWS_LOG_PROBS] = [row.float().cpu().numpy() for row in rows.unbind()]
        return output


def _loss_of_only_update(loss_function, *, model_output: dict, data: TensorDict, dp_group=None):
    """Of a batch without old log-probs: the policy that made its answers is the one at hand, and every ratio 1."""
    data["old_log_probs"] = response_from_nested(model_output["log_probs"].detach(), data["response_mask"])
    return loss_function(model_output=model_output, data=data, dp_group=dp_group)


class SharedValueEngine(SharedRows, FSDPEngineWithValueHead):
    verls_model_type = "value_model"

    def _label_values(self, layout: SharedLayout, data: TensorDict, training: bool) -> dict[str, torch.Tensor]:
        return {"values": state_values(self.module, layout)}


def _places_in_rows(prompts, answers) -> np.ndarray:
    """(answer tokens,): where verl keeps the numbers of each answer token, at the token before it in the flat rows."""
    places, start = [], 0
    for prompt, answer in zip(prompts, answers, strict=True):
        places.append(start + len(prompt) - 1 + np.arange(len(answer)))
        start += len(prompt) + len(answer)
    return np.concatenate(places)


def _in_rows(values: torch.Tensor, places: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Nested as ``rows``: the values at their places, 0 elsewhere."""
    offsets = rows.offsets()
    flat = values.new_zeros(rows.values().shape[0]).index_copy(0, places, values)
    return torch.nested.nested_tensor_from_jagged(flat, offsets)
