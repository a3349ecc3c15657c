"""What a loss formula is given beside the settings: the log-prob sums of a batch of pairs."""

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
    asked for them. ``table.py`` says who needs what, and ``compute_dpo_loss`` checks it before a formula runs.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor | None
    reference_rejected: Tensor | None
    chosen_lengths: Tensor | None
    rejected_lengths: Tensor | None
    mean_chosen_length: Tensor | float | None

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
        """Chosen score minus rejected score."""
        chosen, rejected = self.scores(settings)
        return chosen - rejected

    def mean_margin(self, settings: LossSettings) -> Tensor:
        """Chosen score per token minus rejected score per token."""
        chosen, rejected = self.scores(settings)
        return per_token(chosen, self.chosen_lengths) - per_token(rejected, self.rejected_lengths)

    def tokens_per_chosen(self) -> Tensor | float:
        """The mean number of chosen tokens: the one the caller knows for the global batch, else this call's."""
        if self.mean_chosen_length is not None:
            return self.mean_chosen_length
        lengths = given(self.chosen_lengths)
        return lengths.sum().clamp(min=1) / max(len(lengths), 1)


def given(tensor: Tensor | None) -> Tensor:
    """What a formula asks for, which is there: see `PairTerms`."""
    assert tensor is not None
    return tensor


def per_token(sums: Tensor, lengths: Tensor | None) -> Tensor:
    """Sums over answers divided by their lengths; an empty answer counts as one token, so its 0 stays 0."""
    return sums / torch.clamp(given(lengths), min=1)
