"""The preference losses of offline and online DPO as pure functions of log-prob sums."""

import inspect
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from verl_aiops.losses.arguments import check_logps, constant
from verl_aiops.losses.settings import takes_settings
from verl_aiops.losses.table import LOSSES, needs_lengths, needs_reference, needs_whole_batch
from verl_aiops.losses.terms import PairTerms, per_token
from verl_aiops.losses.validate import build_settings, check_number, terms_of


@takes_settings
def compute_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor | None = None,
    reference_rejected_logps: Tensor | None = None,
    *,
    chosen_lengths: Tensor | Sequence[int] | None = None,
    rejected_lengths: Tensor | Sequence[int] | None = None,
    mean_chosen_length: Tensor | float | None = None,
    weight: Tensor | Sequence[float] | None = None,
    score_gap: Tensor | Sequence[float] | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The preference loss of each pair, with the implicit rewards of its two answers.

    The objective is the mean of the losses over the pairs of the batch. The order of pairs does not matter, and a
    trainer which sums the losses of its micro-batches and workers and divides by the global number of pairs has the
    same objective and gradient, on two conditions: ``needs_whole_batch(loss_type)`` is false, and for ``sft`` every
    call is given the global ``mean_chosen_length``.

    Args:
        policy_chosen_logps, policy_rejected_logps: (pairs,) sums of the answers' token log-probs in nats under the
            policy, float32 or float64. Gradients flow through these alone.
        reference_chosen_logps, reference_rejected_logps: (pairs,) the same under the reference model; both None for
            losses that need none (``needs_reference``).
        chosen_lengths, rejected_lengths: (pairs,) answer lengths in tokens, for ``needs_lengths(loss_type)``.
        mean_chosen_length: mean number of chosen tokens per pair over the whole batch, for ``sft``; None takes it from
            the ``chosen_lengths`` of this call.
        weight: (pairs,) factors of the pairs' losses, taken as constants; the objective stays a mean over pairs, it is
            not divided by the sum of the weights. Rewards are not weighted.
        score_gap: (pairs,) the chosen answer's score minus the rejected one's, for ``score_margin``.
        settings: the fields of ``LossSettings``, each by its name: ``beta``, ``loss_type``, ``label_smoothing``, ...;
            ``settings.py`` has their defaults, ranges and meaning. Of losses of several kinds those of pairs are taken.

    Returns:
        (losses, chosen_rewards, rejected_rewards), each (pairs,): losses not reduced; rewards detached, beta *
        (policy - reference) whatever the loss. Without a reference they are beta * policy, per token if ``simpo`` is
        among the losses.

    Raises:
        TypeError: log-probs that are not float32 or float64; a keyword that does not exist.
        ValueError: settings that ``check_settings`` refuses, or without a loss of pairs; shapes that differ; a
            reference, lengths or score gaps missing; a ``weight`` other than 1 for a loss that couples pairs.
    """
    given = build_settings(**settings)
    terms = terms_of("pair", given)
    names = [name for name, _ in terms]
    check_logps(
        "pairs",
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
    )
    if (reference_chosen_logps is None) != (reference_rejected_logps is None):
        raise ValueError("give both reference_chosen_logps and reference_rejected_logps, or neither")
    if reference_chosen_logps is None and needs_reference(names):
        raise ValueError(f"loss_type {names} needs reference_chosen_logps and reference_rejected_logps")
    pairs = PairTerms(
        policy_chosen=policy_chosen_logps,
        policy_rejected=policy_rejected_logps,
        reference_chosen=None if reference_chosen_logps is None else reference_chosen_logps.detach(),
        reference_rejected=None if reference_rejected_logps is None else reference_rejected_logps.detach(),
        chosen_lengths=constant("chosen_lengths", chosen_lengths, policy_chosen_logps),
        rejected_lengths=constant("rejected_lengths", rejected_lengths, policy_chosen_logps),
        mean_chosen_length=mean_chosen_length,
        score_gap=constant("score_gap", score_gap, policy_chosen_logps),
    )
    if given.score_margin and pairs.score_gap is None:
        raise ValueError(f"score_margin={given.score_margin!r} needs score_gap")
    _check_lengths(names, pairs)

    losses = reduce(torch.add, (factor * LOSSES[name].formula(pairs, given) for name, factor in terms))
    factors = constant("weight", weight, losses)
    if factors is not None:
        if needs_whole_batch(names) and not (factors == 1).all():
            raise ValueError(
                f"weights other than 1 have no meaning for loss_type {names}: sorting mixes the pairs of the batch"
            )
        losses = losses * factors
    chosen_rewards, rejected_rewards = _rewards(pairs, given.beta, per_answer_token="simpo" in names)
    return losses, chosen_rewards, rejected_rewards


def compute_online_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor | None = None,
    reference_rejected_logps: Tensor | None = None,
    **options,
) -> tuple[Tensor, Tensor, Tensor]:
    """``compute_dpo_loss`` for pairs that the policy itself made and a reward then ranked.

    Online DPO (arXiv 2402.04792) differs from DPO in where the pairs come from, not in the loss. Arguments, result and
    errors are those of ``compute_dpo_loss``.
    """
    return compute_dpo_loss(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, **options
    )


# So that help() and anything which reads a signature show the shared keywords rather than **options.
compute_online_dpo_loss.__signature__ = inspect.signature(compute_dpo_loss)  # type: ignore[attr-defined]


def _check_lengths(names: list[str], pairs: PairTerms) -> None:
    mean = pairs.mean_chosen_length
    if isinstance(mean, Tensor):
        # Its value is not looked at: that would make an accelerator wait for the host at every call.
        if mean.dim():
            raise ValueError(f"mean_chosen_length must be one number, got a tensor of shape {tuple(mean.shape)}")
    elif mean is not None:
        check_number("mean_chosen_length", mean, "> 0")
    for name in names:
        if not needs_lengths(name):
            continue
        missing = []
        if pairs.chosen_lengths is None and not (name == "sft" and pairs.mean_chosen_length is not None):
            missing.append("chosen_lengths")
        if pairs.rejected_lengths is None and name not in ("sft", "sft_seq"):
            missing.append("rejected_lengths")
        if missing:
            instead = " (or mean_chosen_length)" if name == "sft" else ""
            raise ValueError(f"loss_type {name!r} needs {' and '.join(missing)}{instead}")


def _rewards(pairs: PairTerms, beta: float, per_answer_token: bool) -> tuple[Tensor, Tensor]:
    if pairs.reference_chosen is not None:
        return beta * pairs.chosen_logratios.detach(), beta * pairs.rejected_logratios.detach()
    chosen, rejected = pairs.policy_chosen.detach(), pairs.policy_rejected.detach()
    if per_answer_token:
        chosen, rejected = per_token(chosen, pairs.chosen_lengths), per_token(rejected, pairs.rejected_lengths)
    return beta * chosen, beta * rejected
