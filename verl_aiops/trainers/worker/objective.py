"""The worker-side objective: from answer log-probs of a micro-batch to its share of the global loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.padding import no_padding_2_padding

from verl_aiops.losses import compute_dpo_loss, sum_logps

__all__ = ["PairFacts", "PreferenceObjective", "columns_for_loss"]

# of a batch of pairs: what the model needs, and what becomes `PairFacts`
_NOT_FOR_LOSS = {
    *("input_ids", "position_ids", "prompts", "responses", "loss_mask", "prompt_lengths"),
    *("counted", "mean_chosen_length", "global_pairs"),
}

METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "logps/accuracies",
)


class _Read:
    """Numbers on a device, fetched once and when they are asked for: the device's queue runs dry at each fetch."""

    def __init__(self, values: torch.Tensor):
        self._values: torch.Tensor | list[float] = values

    def __getitem__(self, at: int) -> float:
        if isinstance(self._values, torch.Tensor):
            self._values = self._values.tolist()
        return self._values[at]


class _LateSum(Metric):
    """A summed `Metric` whose values are some of `_Read`s, one for each micro-batch."""

    def __init__(self, sources: list[tuple[_Read, int]]):
        self.aggregation, self._sources = AggregationType.SUM, list(sources)

    @property
    def values(self) -> list[float]:
        return [numbers[at] for numbers, at in self._sources]

    def init_list(self) -> _LateSum:
        return _LateSum([])

    def append(self, value: _LateSum) -> None:
        self._sources += value._sources

    def __reduce__(self):
        return _plain_metric, (self.aggregation, self.values)


def _plain_metric(aggregation: AggregationType, values: list[float]) -> Metric:
    metric = Metric(aggregation)
    metric.extend(values)
    return metric


def _partial_sums(values: torch.Tensor, scale: float) -> dict[str, Metric]:
    """Metrics from (metrics, pairs)."""
    sums = _Read(values.sum(dim=1) * scale)
    return {name: _LateSum([(sums, at)]) for at, name in enumerate(METRICS)}


@dataclass(frozen=True)
class PairFacts:
    """What Python must know of a micro-batch of pairs.

    Attributes:
        width: tokens of the longest answer.
        kept: numbers of the pairs that count, None for all.
        mean_chosen_length: trained tokens of a chosen answer, mean over the mini-batch.
        global_pairs: pairs of the mini-batch that count, over all ranks.
    """

    width: int
    kept: list[int] | None
    mean_chosen_length: float
    global_pairs: float

    @classmethod
    def of(cls, data: TensorDict) -> PairFacts:
        """From the columns of `pairs.pair_batch`; quick where they are on the host."""
        kept = (data["counted"][0::2] > 0).nonzero().flatten().tolist()
        return cls(
            width=int(data["response_mask"].offsets().diff().max()),
            kept=None if 2 * len(kept) == len(data["counted"]) else kept,
            mean_chosen_length=float(data["mean_chosen_length"][0]),
            global_pairs=float(data["global_pairs"][0]),
        )


def _padded(values: torch.Tensor, width: int) -> torch.Tensor:
    """(rows, width) of a nested tensor; another is that already. The width is given, as torch guesses it too large for
    tensors made from offsets."""
    if not values.is_nested:
        return values
    return torch.nested.to_padded_tensor(values, 0.0, output_size=(len(values.offsets()) - 1, width))


def columns_for_loss(data: TensorDict, device: torch.device | str) -> TensorDict:
    """What `PreferenceObjective` needs of a micro-batch on the host, on its way to the device: nothing waits for it.

    Nested columns are padded before, as PyTorch's own copy of a nested tensor waits until the device has nothing to do.
    """
    facts = PairFacts.of(data)
    columns = {}
    for name, column in data.items():
        if isinstance(column, torch.Tensor) and name not in _NOT_FOR_LOSS:
            dense = _padded(column, facts.width) if column.is_nested else column
            columns[name] = dense.to(device, non_blocking=True)
    result = tu.get_tensordict(columns)
    tu.assign_non_tensor(result, pair_facts=facts, dp_size=data["dp_size"])
    return result


@dataclass
class PreferenceObjective:
    """Loss function for verl's engines, called once per micro-batch on rows chosen, rejected, chosen, ...

    The engines sum losses over micro-batches and average gradients over data-parallel ranks, so each pair's loss
    is scaled by ``dp_size / global_pairs``: the result is the mean over the pairs of the whole mini-batch, however
    it was split. Metrics are partial sums scaled the same way.

    Args:
        loss_settings: keyword arguments of :func:`verl_aiops.losses.compute_dpo_loss`.
        ld_alpha: length desensitising of LD-DPO, or None.
        importance_clip: None, or c: the loss of a pair is weighted by ``min(c, r_chosen * r_rejected)``, taken as a
            constant, where r is an answer's probability under the policy over that under the policy that sampled it.
            Truncated importance sampling (Ionides 2008, "Truncated Importance Sampling", JCGS 17(2)) for pairs that
            are no longer on-policy: several mini-batches or epochs per rollout.
    """

    loss_settings: dict[str, Any] = field(default_factory=dict)
    ld_alpha: float | None = None
    importance_clip: float | None = None

    def __call__(self, model_output: dict, data: TensorDict, dp_group=None) -> tuple[torch.Tensor, dict]:
        facts = tu.get_non_tensor_data(data, key="pair_facts", default=None) or PairFacts.of(data)
        mask = _padded(data["response_mask"], facts.width)
        policy = self._sums(self._token_logps(model_output, data, facts.width), mask)
        reference = None
        if "ref_log_probs" in data.keys():
            reference = self._sums(_padded(data["ref_log_probs"], facts.width), mask)
        lengths = mask.sum(dim=-1)
        if facts.kept == []:
            return policy.sum() * 0.0, _partial_sums(policy.new_zeros(len(METRICS), 1), 0.0)

        def side(values: torch.Tensor | None, first: int) -> torch.Tensor | None:
            # pairs that only fill up a batch are left out before the loss, as some losses look at the batch as a whole
            if values is None or facts.kept is None:
                return None if values is None else values[first::2]
            return values[first::2][facts.kept]

        losses, chosen_rewards, rejected_rewards = compute_dpo_loss(
            side(policy, 0),
            side(policy, 1),
            side(reference, 0),
            side(reference, 1),
            weight=side(data["pair_weight"], 0) * self._importance(side, policy, data, mask, facts.width),
            mean_chosen_length=facts.mean_chosen_length,
            chosen_lengths=side(lengths, 0),
            rejected_lengths=side(lengths, 1),
            **self.loss_settings,
        )
        scale = data["dp_size"] / facts.global_pairs
        chosen, rejected = side(policy, 0).detach(), side(policy, 1).detach()
        values = [
            chosen_rewards,
            rejected_rewards,
            (chosen_rewards > rejected_rewards).float(),
            chosen_rewards - rejected_rewards,
            chosen,
            rejected,
            # what the policy itself prefers, whatever the reference does
            (chosen > rejected).float(),
        ]
        return losses.sum() * scale, _partial_sums(torch.stack([value.float() for value in values]), scale)

    def _importance(
        self, side, policy: torch.Tensor, data: TensorDict, mask: torch.Tensor, width: int
    ) -> torch.Tensor | float:
        """(pairs,) weights of pairs whose answers an older policy sampled; 1 without `importance_clip`."""
        if self.importance_clip is None:
            return 1.0
        ratios = policy.detach() - sum_logps(_padded(data["behaviour_log_probs"], width), mask)
        return (side(ratios, 0) + side(ratios, 1)).exp().clamp(max=self.importance_clip)

    def _sums(self, token_logps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.ld_alpha is None:
            return sum_logps(token_logps, mask)
        lengths = mask.sum(dim=-1)
        public = torch.minimum(lengths[0::2], lengths[1::2]).repeat_interleave(2)
        return sum_logps(token_logps, mask, ld_alpha=self.ld_alpha, public_lengths=public)

    @staticmethod
    def _token_logps(model_output: dict, data: TensorDict, width: int) -> torch.Tensor:
        """(rows, longest answer) token log-probs, 0 beyond each answer."""
        if "answer_log_probs" in model_output:
            return _padded(model_output["answer_log_probs"], width)
        return no_padding_2_padding(model_output["log_probs"], data)
