"""What a loss formula is given beside the settings: the log-prob sums of pairs, of single answers, or of lists."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from verl_aiops.losses.divergence import divergence_score
from verl_aiops.losses.settings import LossSettings


@dataclass(frozen=True)
class PairTerms:
    """Sums of token log-probs in nats, one value per pair, and the answers' lengths in tokens.

    All tensors have shape (pairs,). The reference is None for reference-free losses; lengths are None where no loss
    asked for them. ``score_gap`` is the chosen answer's score minus the rejected one's, None where no score margin is
    set. ``table.py`` says who needs what, and ``compute_dpo_loss`` checks it before a formula runs.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor | None
    reference_rejected: Tensor | None
    chosen_lengths: Tensor | None
    rejected_lengths: Tensor | None
    mean_chosen_length: Tensor | float | None
    score_gap: Tensor | None = None

    @cached_property
    def chosen_logratios(self) -> Tensor:
        return self.policy_chosen - given(self.reference_chosen)

    @cached_property
    def rejected_logratios(self) -> Tensor:
        return self.policy_rejected - given(self.reference_rejected)

    def scores(self, settings: LossSettings) -> tuple[Tensor, Tensor]:
        """Chosen and rejected f'(policy / reference); the log-ratios themselves under the default reverse KL."""
        kind, coef = settings.f_divergence_type, settings.f_alpha_divergence_coef
        return (
            divergence_score(self.chosen_logratios, kind, coef),
            divergence_score(self.rejected_logratios, kind, coef),
        )

    def margin(self, settings: LossSettings) -> Tensor:
        """Chosen score minus rejected score, and minus what the pair's score gap asks for."""
        chosen, rejected = self.scores(settings)
        return self.beyond_gap(chosen - rejected, settings)

    def mean_margin(self, settings: LossSettings) -> Tensor:
        """The same of scores per token."""
        chosen, rejected = self.scores(settings)
        difference = per_token(chosen, self.chosen_lengths) - per_token(rejected, self.rejected_lengths)
        return self.beyond_gap(difference, settings)

    def beyond_gap(self, difference: Tensor, settings: LossSettings) -> Tensor:
        """``difference``, which a formula multiplies by beta, less ``score_margin * score_gap`` in units of reward."""
        if not settings.score_margin:
            return difference
        return difference - settings.score_margin / settings.beta * given(self.score_gap)

    def tokens_per_chosen(self) -> Tensor | float:
        """The mean number of chosen tokens: the one the caller knows for the global batch, else this call's."""
        if self.mean_chosen_length is not None:
            return self.mean_chosen_length
        lengths = given(self.chosen_lengths)
        return lengths.sum().clamp(min=1) / max(len(lengths), 1)


@dataclass(frozen=True)
class AnswerTerms:
    """Single answers that were found good or bad.

    ``policy`` and ``reference`` are sums of token log-probs in nats, ``good`` is boolean, all of shape (answers,).
    ``kl`` (nats, not below 0) and ``shift`` (units of reward) are constants that broadcast to it, None where no loss
    asked for them.
    """

    policy: Tensor
    reference: Tensor | None
    good: Tensor
    kl: Tensor | None
    shift: Tensor | None

    @cached_property
    def logratios(self) -> Tensor:
        return self.policy - given(self.reference)

    def signed(self, values: Tensor) -> Tensor:
        """``values`` of good answers, minus ``values`` of bad ones."""
        return torch.where(self.good, values, -values)


@dataclass(frozen=True)
class ListTerms:
    """Ranked answers to one prompt a row; all tensors have shape (lists, answers).

    Where ``present`` is false no answer stands, and the others hold 0. ``ranks`` are 1 for the best, equal for ties;
    ``scores`` are larger for the better.
    """

    policy: Tensor
    reference: Tensor | None
    ranks: Tensor
    scores: Tensor
    present: Tensor

    @cached_property
    def logratios(self) -> Tensor:
        return self.policy - given(self.reference)

    @cached_property
    def worse(self) -> Tensor:
        """(lists, answers, answers): whether the second answer is there and ranked below the first, which is too."""
        return ranked_below(self.ranks, self.present)


def ranked_below(ranks: Tensor, present: Tensor) -> Tensor:
    """(lists, answers, answers): whether the second answer is there and ranked below the first, which is too."""
    return (ranks.unsqueeze(1) > ranks.unsqueeze(2)) & present.unsqueeze(1) & present.unsqueeze(2)


def given(tensor: Tensor | None) -> Tensor:
    """What a formula asks for, which is there: see `PairTerms`."""
    assert tensor is not None
    return tensor


def per_token(sums: Tensor, lengths: Tensor | None) -> Tensor:
    """Sums over answers divided by their lengths; an empty answer counts as one token, so its 0 stays 0."""
    return sums / torch.clamp(given(lengths), min=1)
