"""The worker-side objective: from answer log-probs of a micro-batch to its share of the global loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict

from verl_aiops.losses import (
    LossSettings,
    compute_answer_loss,
    compute_dpo_loss,
    compute_list_loss,
    padded_lists,
    rounding,
    share_in_order,
    share_right,
    sum_logps,
)
from verl_aiops.seam.engine import no_padding_2_padding
from verl_aiops.seam.engine import tensordict_utils as tu
from verl_aiops.trainers.batch import AnswerBatch
from verl_aiops.trainers.worker.facts import METRICS, PairFacts
from verl_aiops.trainers.worker.late_sums import partial_sums

__all__ = ["METRICS", "ROUTER_LOSS", "PairFacts", "PreferenceObjective", "columns_for_loss"]


# what the engine puts into the model's output where routers are trained on, and the metric of it
ROUTER_LOSS = "router/aux_loss"


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
    tu.assign_non_tensor(result, pair_facts=facts.on(device), dp_size=data["dp_size"])
    return result


# losses of some examples, and the values of their metrics by name
_Term = tuple[torch.Tensor, Mapping[str, torch.Tensor]]


@dataclass
class PreferenceObjective:
    """Loss function for verl's engines, called once per micro-batch of an `AnswerBatch`.

    What it returns is not the micro-batch's mean. The engines add up the losses of all micro-batches of a mini-batch,
    on each data-parallel rank, and then average gradients over the ranks, whatever each of them held. So an example's
    loss is multiplied by ``dp_size / global_pairs``: with ``global_pairs`` examples in the mini-batch over all ranks,
    the average of the ranks' sums is the mean over its examples, however it was split, also where a rank has more that
    count than another. Metrics are partial sums scaled likewise, each by the number of examples that have it
    (`PairFacts.scales`), which `Metric` adds up over micro-batches and averages over ranks.

    Pairs, single answers and ranked lists may stand in one micro-batch, or none of a kind. Rows that are none of them
    (answers by which the KL is estimated, and what fills up an example) are not looked at. What the metrics of pairs
    say of chosen and rejected answers they say of single answers with a yes and with a no, and of the best and the
    worst of a list; its accuracy is the share of its comparisons that come out right. Where the two differ by no more
    than rounding, as all do before the first step, a pair is half right (`losses.share_right`).

    Args:
        loss_settings: keyword arguments of :func:`verl_aiops.losses.compute_dpo_loss` and its like for other examples.
        ld_alpha: length desensitising of LD-DPO, or None.
        importance_clip: None, or c: the loss of a pair is weighted by ``min(c, r_chosen * r_rejected)``, taken as a
            constant, where r is an answer's probability under the policy over that under the policy that sampled it.
            Truncated importance sampling (Ionides 2008, "Truncated Importance Sampling", JCGS 17(2)) for pairs that
            are no longer on-policy: several mini-batches or epochs per rollout.
        router_aux_loss_coef: the factor of the routers' loss in a mixture of experts. It is that of each micro-batch
            (a product of two means over its tokens), weighted by its share of the mini-batch's examples, as it is
            wherever gradients are accumulated.
    """

    loss_settings: dict[str, Any] = field(default_factory=dict)
    ld_alpha: float | None = None
    importance_clip: float | None = None
    router_aux_loss_coef: float = 0.0

    def __call__(self, model_output: dict, data: TensorDict, dp_group=None) -> tuple[torch.Tensor, dict]:
        facts = tu.get_non_tensor_data(data, key="pair_facts", default=None) or PairFacts.of(data)
        columns = AnswerBatch.of(data)
        mask = _padded(columns.response_mask, facts.width)
        policy = self._sums(self._token_logps(model_output, data, facts.width), mask, facts)
        reference = None
        if columns.ref_log_probs is not None:
            reference = self._sums(_padded(columns.ref_log_probs, facts.width), mask, facts)
        scales = facts.scales(data["dp_size"], columns)
        terms = []
        if facts.pairs:
            terms.append(self._pairs(policy, reference, mask, columns, facts))
        if facts.singles:
            terms.append(self._singles(policy, reference, columns, facts))
        if facts.lists:
            terms.append(self._lists(policy, reference, columns, facts))
        values = [value for _, value in terms]
        if not terms:
            # a graph to the model's output all the same: a worker without a gradient would leave the others waiting
            nothing = self._of_router(model_output, facts, 0.0, policy)
            return policy.sum() * 0.0, partial_sums(values, scales, policy) | nothing
        loss = torch.stack([losses.sum() for losses, _ in terms]).sum() if len(terms) > 1 else terms[0][0].sum()
        scale = data["dp_size"] / facts.global_pairs
        if ROUTER_LOSS in model_output:
            loss = loss + self.router_aux_loss_coef * facts.examples * model_output[ROUTER_LOSS]
        return loss * scale, partial_sums(values, scales, policy) | self._of_router(model_output, facts, scale, policy)

    @staticmethod
    def _of_router(model_output: dict, facts: PairFacts, scale: float, like: torch.Tensor) -> dict:
        """The routers' loss as a mean over the mini-batch's examples."""
        if ROUTER_LOSS not in model_output:
            return {}
        value = facts.examples * model_output[ROUTER_LOSS].detach().reshape(1)
        return partial_sums([{ROUTER_LOSS: value}], {ROUTER_LOSS: scale}, like)

    def _pairs(
        self,
        policy: torch.Tensor,
        reference: torch.Tensor | None,
        mask: torch.Tensor,
        columns: AnswerBatch,
        facts: PairFacts,
    ) -> _Term:
        # pairs that only fill up a batch are left out before the loss, as some losses look at the batch as a whole
        policy_chosen, policy_rejected = policy[facts.chosen], policy[facts.rejected]
        lengths = mask.sum(dim=-1)
        weight = columns.pair_weight[facts.chosen]
        if self.importance_clip is not None:
            weight = weight * self._importance(policy, _padded(columns.behaviour_log_probs, facts.width), mask, facts)
        losses, chosen_rewards, rejected_rewards = compute_dpo_loss(
            policy_chosen,
            policy_rejected,
            None if reference is None else reference[facts.chosen],
            None if reference is None else reference[facts.rejected],
            weight=weight,
            mean_chosen_length=facts.mean_chosen_length,
            chosen_lengths=lengths[facts.chosen],
            rejected_lengths=lengths[facts.rejected],
            score_gap=self._score_gap(policy_chosen, columns, facts),
            **self.loss_settings,
        )
        chosen, rejected = policy_chosen.detach(), policy_rejected.detach()
        values = (
            chosen_rewards,
            rejected_rewards,
            share_right(
                chosen_rewards - rejected_rewards, self._rounding(policy, reference, facts.chosen, facts.rejected)
            ),
            chosen_rewards - rejected_rewards,
            chosen,
            rejected,
            # what the policy itself prefers, whatever the reference does
            share_right(chosen - rejected, rounding(chosen, rejected)),
        )
        return losses, dict(zip(METRICS, values, strict=True))

    def _rounding(self, policy: torch.Tensor, reference: torch.Tensor | None, *rows: Any) -> torch.Tensor:
        """What of the difference of the rewards of some rows may be rounding alone, in the rewards' unit."""
        parts = [policy.detach()[some] for some in rows]
        if reference is not None:
            parts += [reference[some] for some in rows]
        return self.loss_settings.get("beta", LossSettings.beta) * rounding(*parts)

    def _score_gap(self, chosen: torch.Tensor, columns: AnswerBatch, facts: PairFacts) -> torch.Tensor | None:
        if not self.loss_settings.get("score_margin"):
            return None
        # no pair of the batch has scores
        return torch.zeros_like(chosen) if columns.margin is None else columns.margin[facts.chosen]

    def _singles(
        self, policy: torch.Tensor, reference: torch.Tensor | None, columns: AnswerBatch, facts: PairFacts
    ) -> _Term:
        answers = facts.answers
        logps, good = policy[answers], columns.verdict[answers] > 0
        estimates = {name: getattr(columns, name) for name in ("kl", "shift")}
        estimates = {name: column[answers] for name, column in estimates.items() if column is not None}
        losses, rewards = compute_answer_loss(
            logps,
            None if reference is None else reference[answers],
            good,
            weight=columns.pair_weight[answers],
            **estimates,
            **self.loss_settings,
        )
        values = {"rewards/unpaired": rewards}
        for name, of_each in (("rewards", rewards), ("logps", logps.detach())):
            values |= {f"{name}/chosen": of_each * good, f"{name}/rejected": of_each * ~good}
        if facts.answers_have_margins:
            values["rewards/margins"] = torch.where(good, rewards / facts.global_yes, -rewards / facts.global_no)
        return losses, values | {f"rewards/{name}": column for name, column in estimates.items()}

    def _lists(
        self, policy: torch.Tensor, reference: torch.Tensor | None, columns: AnswerBatch, facts: PairFacts
    ) -> _Term:
        rows, present = facts.padded or padded_lists(facts.lists, policy.device)
        logps, ranks = policy[rows], columns.rank[rows]
        losses, rewards = compute_list_loss(
            logps,
            None if reference is None else reference[rows],
            ranks,
            scores=None if columns.score is None else columns.score[rows],
            present=present,
            weight=columns.pair_weight[rows[:, 0]],
            **self.loss_settings,
        )
        ends = [
            present & (ranks == ranks.masked_fill(~present, fill).aminmax(dim=1, keepdim=True)[at])
            for at, fill in enumerate((torch.inf, -torch.inf))
        ]
        values: dict[str, torch.Tensor] = {}
        for name, of_each in (("rewards", rewards), ("logps", logps.detach())):
            best, worst = ((of_each * end).sum(dim=1) / end.sum(dim=1) for end in ends)
            values |= {f"{name}/chosen": best, f"{name}/rejected": worst, f"{name}/margins": best - worst}
            noise = rounding(of_each) if name == "logps" else self._rounding(policy, reference, rows)
            values[f"{name}/accuracies"] = share_in_order(of_each, ranks, present, noise)
        return losses, {name: values[name] for name in METRICS}

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
