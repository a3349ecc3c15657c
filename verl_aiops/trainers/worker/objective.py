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
from verl_aiops.trainers.batch import AnswerBatch

__all__ = ["PairFacts", "PreferenceObjective", "columns_for_loss"]

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


# of rows that are chosen, rejected, chosen, ...: slices, where a list of numbers would have to travel to the device
_EVERY_CHOSEN, _EVERY_REJECTED = slice(0, None, 2), slice(1, None, 2)


@dataclass(frozen=True)
class PairFacts:
    """What Python must know of a micro-batch of pairs.

    Attributes:
        width: tokens of the longest answer.
        chosen: rows of the pairs that count, in order.
        rejected: likewise, of the same pairs.
        pairs: number of those pairs.
        mean_chosen_length: trained tokens of a chosen answer, mean over the mini-batch.
        global_pairs: pairs of the mini-batch that count, over all ranks.
    """

    width: int
    chosen: slice | list[int]
    rejected: slice | list[int]
    pairs: int
    mean_chosen_length: float
    global_pairs: float

    @classmethod
    def of(cls, data: TensorDict) -> PairFacts:
        """From the columns of an `AnswerBatch`; quick where they are on the host."""
        batch = AnswerBatch.of(data)
        places = batch.beats.nonzero()
        places = places[batch.counted[places[:, 0]] > 0]
        chosen = places[:, 0].tolist()
        rejected = (places[:, 0] + batch.beats[places[:, 0], places[:, 1]]).tolist()
        pairs, rows = len(chosen), len(batch.counted)
        if chosen == list(range(0, rows, 2)) and rejected == list(range(1, rows, 2)):
            chosen, rejected = _EVERY_CHOSEN, _EVERY_REJECTED
        return cls(
            width=int(batch.response_mask.offsets().diff().max()),
            chosen=chosen,
            rejected=rejected,
            pairs=pairs,
            # the same in each row: `AnswerBatch`
            mean_chosen_length=float(batch.mean_chosen_length[0]),
            global_pairs=float(batch.global_pairs[0]),
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
    columns = {
        name: _padded(column, facts.width).to(device, non_blocking=True)
        for name, column in AnswerBatch.of(data).columns(loss=True).items()
    }
    result = tu.get_tensordict(columns)
    tu.assign_non_tensor(result, pair_facts=facts, dp_size=data["dp_size"])
    return result


@dataclass
class PreferenceObjective:
    """Loss function for verl's engines, called once per micro-batch of an `AnswerBatch`.

    What it returns is not the micro-batch's mean. The engines add up the losses of all micro-batches of a mini-batch,
    on each data-parallel rank, and then average gradients over the ranks, whatever each of them held. So a pair's loss
    is multiplied by ``dp_size / global_pairs``: with ``global_pairs`` pairs in the mini-batch over all ranks, the
    average of the ranks' sums is the mean over its pairs, however it was split, also where a rank has more pairs that
    count than another. Metrics are partial sums scaled the same way, which `Metric` adds up over micro-batches and
    averages over ranks.

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
        columns = AnswerBatch.of(data)
        mask = _padded(columns.response_mask, facts.width)
        policy = self._sums(self._token_logps(model_output, data, facts.width), mask, facts)
        if not facts.pairs:
            # a graph to the model's output all the same: a worker without a gradient would leave the others waiting
            return policy.sum() * 0.0, _partial_sums(policy.new_zeros(len(METRICS), 1), 0.0)
        # pairs that only fill up a batch are left out before the loss, as some losses look at the batch as a whole
        policy_chosen, policy_rejected = policy[facts.chosen], policy[facts.rejected]
        reference_chosen = reference_rejected = None
        if columns.ref_log_probs is not None:
            reference = self._sums(_padded(columns.ref_log_probs, facts.width), mask, facts)
            reference_chosen, reference_rejected = reference[facts.chosen], reference[facts.rejected]
        lengths = mask.sum(dim=-1)
        weight = columns.pair_weight[facts.chosen]
        if self.importance_clip is not None:
            weight = weight * self._importance(policy, _padded(columns.behaviour_log_probs, facts.width), mask, facts)
        losses, chosen_rewards, rejected_rewards = compute_dpo_loss(
            policy_chosen,
            policy_rejected,
            reference_chosen,
            reference_rejected,
            weight=weight,
            mean_chosen_length=facts.mean_chosen_length,
            chosen_lengths=lengths[facts.chosen],
            rejected_lengths=lengths[facts.rejected],
            **self.loss_settings,
        )
        scale = data["dp_size"] / facts.global_pairs
        chosen, rejected = policy_chosen.detach(), policy_rejected.detach()
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
        self, policy: torch.Tensor, behaviour: torch.Tensor, mask: torch.Tensor, facts: PairFacts
    ) -> torch.Tensor:
        """(pairs,) weights of pairs whose answers an older policy sampled."""
        ratios = policy.detach() - sum_logps(behaviour, mask)
        return (ratios[facts.chosen] + ratios[facts.rejected]).exp().clamp(max=self.importance_clip)

    def _sums(self, token_logps: torch.Tensor, mask: torch.Tensor, facts: PairFacts) -> torch.Tensor:
        """(rows,) sums over answers; with ``ld_alpha`` tokens beyond the shorter one of a pair count less."""
        if self.ld_alpha is None:
            return sum_logps(token_logps, mask)
        public = mask.sum(dim=-1)
        shorter = torch.minimum(public[facts.chosen], public[facts.rejected])
        public[facts.chosen] = shorter
        public[facts.rejected] = shorter
        return sum_logps(token_logps, mask, ld_alpha=self.ld_alpha, public_lengths=public)

    @staticmethod
    def _token_logps(model_output: dict, data: TensorDict, width: int) -> torch.Tensor:
        """(rows, longest answer) token log-probs, 0 beyond each answer."""
        if "answer_log_probs" in model_output:
            return _padded(model_output["answer_log_probs"], width)
        return no_padding_2_padding(model_output["log_probs"], data)
