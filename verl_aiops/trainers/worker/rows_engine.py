"""verl's FSDP engines for policies and critics of GRPO and PPO, with what rows begin with in common computed once."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
import torch
from tensordict import NonTensorData, TensorDict
from verl.utils.device import get_device_name

from verl_aiops.models.company import rotary_limit
from verl_aiops.seam.engine import (
    FSDPEngineWithLMHead,
    FSDPEngineWithValueHead,
    detach_tree,
    get_device_id,
    response_from_nested,
)
from verl_aiops.seam.engine import tensordict_utils as tu
from verl_aiops.trainers.batch import ENTROPY_IS_LOGGED, ROWS_LOG_PROBS
from verl_aiops.trainers.logprobs.layout import SharedLayout
from verl_aiops.trainers.logprobs.micro_batches import MicroBatches, cut
from verl_aiops.trainers.logprobs.shared_prompt import label_values, state_values
from verl_aiops.trainers.logprobs.switch import with_own_attention
from verl_aiops.trainers.worker.module import FastModule
from verl_aiops.verl_patches.micro_batches import PLANNED

__all__ = ["SharedPolicyEngine", "SharedValueEngine"]

COLUMNS = ("prompts", "responses", "response_mask")
# what verl's own forward pass does beside log-probs and entropies
_VERLS_ALONE = ("distillation_use_topk", "distillation_only", "calculate_sum_pi_squared")


class SharedRows(FastModule):
    """Micro-batches in which rows that share their beginnings stand together, each gone through the model as a tree.

    The rows' numbers come out as verl's own forward pass gives them, nested over prompt and answer with the value of a
    token at the place before it; where ``response_mask`` is 0, and in the prompt, they are 0. A batch of which any
    worker's part asks for more than that (`_shares`) goes through verl's own forward pass on all of them.
    """

    verls_model_type: str

    def __init__(self, model_config, *args, **kwargs):
        # the registry found this class by its own name; verl's loader knows verl's
        model_config.model_type = self.verls_model_type
        super().__init__(model_config, *args, **kwargs)

    def forward_backward_batch(self, data: TensorDict, loss_function, forward_only=False):
        plan = self._plan(data)
        if plan is None:
            with_own_attention(self.module)
            return super().forward_backward_batch(data, loss_function, forward_only=forward_only)
        # a copy of the names alone: what is said here holds for this pass, and whoever sent the batch may use it again
        data = data.copy()
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
        """Whether this worker's rows can go through the model as trees, with all that is asked of them."""
        if any(tu.get_non_tensor_data(data, key=k, default=False) for k in _VERLS_ALONE):
            return False
        # verl's older trainer pads; images and videos have three numbers for a position
        if not all(data[name].is_nested for name in COLUMNS) or data["position_ids"].dim() > 2:
            return False
        temperature = data["temperature"] if "temperature" in data.keys() else 1.0
        if isinstance(temperature, torch.Tensor) and len(temperature.unique()) > 1:
            return False
        limit = rotary_limit(self.model_config.hf_config)
        if limit is not None and int(data["input_ids"].offsets().diff().max()) > limit[0]:
            return False
        # verl gives each row a dictionary, an empty one where there is only text
        return not any(_plain(data.get("multi_modal_inputs", ())))

    def _plan(self, data: TensorDict) -> MicroBatches | None:
        """This worker's micro-batches, as many as every other worker of the sharded model has; None if any worker's
        rows need verl's own forward pass."""
        plan = None
        if self._shares(data):
            columns = [[row.numpy() for row in data[name].cpu().unbind()] for name in COLUMNS[:2]]
            dynamic = tu.get_non_tensor_data(data, key="use_dynamic_bsz", default=True)
            limit = (
                # workers that have a sequence together have room for so many times as much, as verl counts too
                {"most_tokens": data["max_token_len_per_gpu"] * self.ulysses_sequence_parallel_size}
                if dynamic
                else {"most_rows": data["micro_batch_size_per_gpu"]}
            )
            plan = cut(*columns, **limit)
        group = self.get_data_parallel_group()
        if torch.distributed.get_world_size(group) > 1:
            number = len(plan.rows) if plan else 0
            most = torch.tensor([number, plan is None], dtype=torch.int64, device=get_device_id())
            torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX, group=group)
            most, not_all = most.tolist()
            if not_all:
                return None
            if most > number:
                plan = cut(*columns, **limit, at_least=most)
        return plan

    def forward_step(self, micro_batch: TensorDict, loss_function, forward_only):
        if PLANNED not in micro_batch.keys():
            return super().forward_step(micro_batch, loss_function, forward_only)
        columns = [micro_batch[name].cpu() for name in COLUMNS]
        rows = [column.unbind() for column in columns]
        # whatever goes to the GPU goes before the forward pass: afterwards a copy waits for it
        layout = SharedLayout(*rows).to(get_device_id())
        places = torch.from_numpy(_places_in_rows(*rows[:2])).to(get_device_id(), non_blocking=True)
        data = micro_batch.to(get_device_id())
        # verl's losses take nothing but lengths from these, row by row: each would be waited for on a GPU
        data.clear_device_()
        data.update(dict(zip(COLUMNS[:2], columns)))
        with self._autocast():
            values = self._label_values(layout, data)
            model_output = {
                name: _in_rows(column, places[layout.slots], data["input_ids"]) for name, column in values.items()
            }
            if loss_function is None:
                loss, metrics = torch.tensor(1.0, device=get_device_name()), {}
            else:
                loss, metrics = loss_function(
                    model_output=model_output, data=data, dp_group=self.get_data_parallel_group()
                )
        return loss, {"model_output": detach_tree(model_output), "loss": loss.detach().item(), "metrics": metrics}


class SharedPolicyEngine(SharedRows, FSDPEngineWithLMHead):
    verls_model_type = "language_model"

    def _label_values(self, layout: SharedLayout, data: TensorDict) -> dict[str, torch.Tensor]:
        temperature = data["temperature"] if "temperature" in data.keys() else 1.0
        # the least that verl divides by, for answers that were sampled greedily
        temperature = max(float(temperature[0] if isinstance(temperature, torch.Tensor) else temperature), 1e-8)
        entropy = tu.get_non_tensor_data(data, key="calculate_entropy", default=False)
        values = label_values(
            self.module,
            layout,
            temperature=temperature,
            entropy=entropy,
            entropy_gradient=not tu.get_non_tensor_data(data, key=ENTROPY_IS_LOGGED, default=False),
        )
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

    def _shares(self, data: TensorDict) -> bool:
        # TRL's critics, for models without token classification, have a head of their own
        return not hasattr(self.module, "v_head") and super()._shares(data)

    def _label_values(self, layout: SharedLayout, data: TensorDict) -> dict[str, torch.Tensor]:
        return {"values": state_values(self.module, layout)}


def _plain(column: Iterable) -> Iterable:
    """The entries of a column that is no tensor."""
    return (entry.data if isinstance(entry, NonTensorData) else entry for entry in column)


def _places_in_rows(prompts, answers) -> np.ndarray:
    """(answer tokens,): where verl keeps the numbers of each answer token, at the token before it in the flat rows."""
    places, start = [], 0
    for prompt, answer in zip(prompts, answers, strict=True):
        places.append(start + len(prompt) - 1 + np.arange(len(answer)))
        start += len(prompt) + len(answer)
    return np.concatenate(places)


def _in_rows(values: torch.Tensor, places: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Nested as ``rows``: the values at their places, 0 elsewhere."""
    return torch.nested.nested_tensor_from_jagged(_flat(values, places, rows.values().shape[0]), rows.offsets())


def _flat(values: torch.Tensor, places: torch.Tensor, length: int) -> torch.Tensor:
    """(length,): the values at their places, 0 elsewhere."""
    return values.new_zeros(length).index_copy(0, places, values)
