"""The worker-side objective of reward models: from the scores of a micro-batch to its share of the global loss."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from tensordict import TensorDict

from verl_aiops.losses import (
    compute_label_loss,
    compute_pair_loss,
    compute_ranking_loss,
    compute_score_loss,
    padded_lists,
    rounding,
    share_in_order,
    share_right,
)
from verl_aiops.seam.engine import tensordict_utils as tu
from verl_aiops.trainers.batch import AnswerBatch
from verl_aiops.trainers.worker.facts import PairFacts
from verl_aiops.trainers.worker.late_sums import partial_sums

__all__ = ["METRICS", "RewardObjective"]

# `square` is of scores, so that the trainer can tell their spread over any number of workers
METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "rewards/mean",
    "rewards/square",
)

_Term = tuple[torch.Tensor, dict[str, torch.Tensor]]


@dataclass
class RewardObjective:
    """Loss function for verl's engines, as `worker.objective.PreferenceObjective`, whose words on scaling hold here.

    Metrics are of raw scores. ``rewards/chosen`` and ``rejected`` say of single answers those with a yes and with a no,
    of lists the best and the worst; ``accuracies`` is how often the better answer scores higher, of single answers how
    often the sign of the score is right, equal scores being half right (`losses.share_right`); ``mean`` and ``square``
    are of an example's answers.

    Args:
        losses: weight of each of `losses.REWARD_LOSSES` that is used.
        score_margin, margin: a pair's lead is ``margin + score_margin * gap of scores``.
        label_smoothing, center: as the losses take them.
    """

    losses: dict[str, float] = field(default_factory=lambda: {"bradley_terry": 1.0})
    score_margin: float = 0.0
    margin: float = 0.0
    label_smoothing: float = 0.0
    center: float = 0.0

    def __call__(self, model_output: dict, data: TensorDict, dp_group=None) -> tuple[torch.Tensor, dict]:
        facts = tu.get_non_tensor_data(data, key="pair_facts", default=None) or PairFacts.of(data)
        columns = AnswerBatch.of(data)
        scores = model_output["answer_scores"].values()
        scales = _scales(facts, data["dp_size"])
        terms = []
        if facts.pairs:
            terms.append(self._pairs(scores, columns, facts))
        if facts.singles:
            terms.append(self._singles(scores, columns, facts))
        if facts.lists:
            terms.append(self._lists(scores, columns, facts))
        values = [value for _, value in terms]
        if not terms:
            # a graph to the model's output all the same: a worker without a gradient would leave the others waiting
            return scores.sum() * 0.0, partial_sums(values, scales, scores)
        loss = torch.stack([losses.sum() for losses, _ in terms]).sum()
        return loss * (data["dp_size"] / facts.global_pairs), partial_sums(values, scales, scores)

    def _pairs(self, scores: torch.Tensor, columns: AnswerBatch, facts: PairFacts) -> _Term:
        chosen, rejected = scores[facts.chosen], scores[facts.rejected]
        lead = torch.full_like(chosen, self.margin)
        if self.score_margin and columns.margin is not None:
            lead = lead + self.score_margin * columns.margin[facts.chosen]
        losses = self.losses["bradley_terry"] * compute_pair_loss(
            chosen, rejected, margin=lead, label_smoothing=self.label_smoothing, center=self.center
        )
        chosen, rejected = chosen.detach(), rejected.detach()
        values = (
            chosen,
            rejected,
            share_right(chosen - rejected, rounding(chosen, rejected)),
            chosen - rejected,
            (chosen + rejected) / 2,
            (chosen**2 + rejected**2) / 2,
        )
        return losses * columns.pair_weight[facts.chosen], dict(zip(METRICS, values, strict=True))

    def _singles(self, scores: torch.Tensor, columns: AnswerBatch, facts: PairFacts) -> _Term:
        of_answers = scores[facts.answers]
        good = columns.verdict[facts.answers] > 0
        losses = self.losses["binary"] * compute_label_loss(of_answers, good, label_smoothing=self.label_smoothing)
        told = of_answers.detach()
        values = {
            "rewards/chosen": told * good,
            "rewards/rejected": told * ~good,
            "rewards/accuracies": share_right(torch.where(good, told, -told)),
            "rewards/mean": told,
            "rewards/square": told**2,
        }
        return losses * columns.pair_weight[facts.answers], values

    def _lists(self, scores: torch.Tensor, columns: AnswerBatch, facts: PairFacts) -> _Term:
        rows, present = facts.padded or padded_lists(facts.lists, scores.device)
        of_lists, ranks = scores[rows], columns.rank[rows]
        losses = of_lists.new_zeros(len(rows))
        if weight := self.losses.get("plackett_luce"):
            losses = losses + weight * compute_ranking_loss(of_lists, ranks, present=present, center=self.center)
        if weight := self.losses.get("regression"):
            losses = losses + weight * compute_score_loss(of_lists, columns.score[rows], present=present)
        told = of_lists.detach().masked_fill(~present, 0.0)
        number = present.sum(dim=1)
        best, worst = (
            (told * end).sum(dim=1) / end.sum(dim=1)
            for end in (
                present & (ranks == ranks.masked_fill(~present, fill).aminmax(dim=1, keepdim=True)[at])
                for at, fill in enumerate((torch.inf, -torch.inf))
            )
        )
        values = (
            best,
            worst,
            share_in_order(told, ranks, present, rounding(told)),
            best - worst,
            told.sum(dim=1) / number,
            (told**2).sum(dim=1) / number,
        )
        return losses * columns.pair_weight[rows[:, 0]], dict(zip(METRICS, values, strict=True))


def _scales(facts: PairFacts, dp_size: int) -> dict[str, float]:
    """By the name of each metric the factor that makes a mean of partial sums, over the examples that have it."""
    compared = facts.global_pairs - facts.global_yes - facts.global_no
    counts = dict.fromkeys(METRICS, facts.global_pairs)
    counts["rewards/chosen"] = compared + facts.global_yes
    counts["rewards/rejected"] = compared + facts.global_no
    counts["rewards/margins"] = compared
    return {name: dp_size / count for name, count in counts.items() if count}
