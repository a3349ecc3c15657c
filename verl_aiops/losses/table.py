"""Which losses exist, and what each asks of its caller."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from verl_aiops.losses import formulas
from verl_aiops.losses.settings import LossSettings

# What one term of a loss is made of: two answers, one answer with a yes or a no, or a prompt's ranked answers.
KINDS = ("pair", "single", "list")


@dataclass(frozen=True)
class LossSpec:
    """A loss formula and its needs.

    of: one of ``KINDS``; the formula is given `PairTerms`, `AnswerTerms` or `ListTerms`.
    smoothing: the range of ``label_smoothing`` as text, None where the formula has none.
    any_f: an f-divergence may replace the reverse KL. The partition function of f-DPO cancels only in a difference of
        the two answers' scores, so losses which look at one answer alone (or sort) have no such form.
    gap: it has a difference of the two answers' rewards, from which ``score_margin`` takes; None: as ``any_f``.
    kl, shift: it needs an estimate of the policy's KL to the reference, or a running mean of rewards.
    own_knobs: settings that the package has for another loss (``settings.py``) and this formula takes too.
    """

    formula: Callable[[Any, LossSettings], Tensor]
    of: str = "pair"
    smoothing: str | None = None
    any_f: bool = False
    reference: bool = True
    lengths: bool = False
    whole_batch: bool = False
    gap: bool | None = None
    kl: bool = False
    shift: bool = False
    own_knobs: tuple[str, ...] = ()

    @property
    def has_gap(self) -> bool:
        return self.any_f if self.gap is None else self.gap


# One line for each; a module of a user's own may add to it, see docs/extending.md.
LOSSES: dict[str, LossSpec] = {
    "sigmoid": LossSpec(formulas.sigmoid, smoothing="[0, 0.5]", any_f=True),
    "robust": LossSpec(formulas.robust, smoothing="[0, 0.5)", any_f=True),
    "hinge": LossSpec(formulas.hinge, any_f=True),
    "ipo": LossSpec(formulas.ipo, any_f=True, lengths=True),
    "ipo_sum": LossSpec(formulas.ipo_sum, any_f=True),
    "exo_pair": LossSpec(formulas.exo_pair, smoothing="(0, 0.5]", any_f=True),
    "nca_pair": LossSpec(formulas.nca_pair),
    "bco_pair": LossSpec(formulas.bco_pair),
    "sppo_hard": LossSpec(formulas.sppo_hard),
    "aot": LossSpec(formulas.aot, smoothing="[0, 0.5]", whole_batch=True),
    "aot_unpaired": LossSpec(formulas.aot_unpaired, smoothing="[0, 0.5]", whole_batch=True),
    "apo_zero": LossSpec(formulas.apo_zero),
    "apo_down": LossSpec(formulas.apo_down),
    "discopop": LossSpec(formulas.discopop, any_f=True),
    "sigmoid_norm": LossSpec(formulas.sigmoid_norm, any_f=True, lengths=True),
    "simpo": LossSpec(formulas.simpo, reference=False, lengths=True, gap=True),
    "dpop": LossSpec(formulas.dpop),
    "sft": LossSpec(formulas.sft, reference=False, lengths=True),
    "sft_seq": LossSpec(formulas.sft_seq, reference=False, lengths=True),
    "plackett_luce": LossSpec(formulas.plackett_luce, of="list"),
    "listwise": LossSpec(formulas.listwise, of="list"),
    "kto": LossSpec(formulas.kto, of="single", kl=True),
    "apo_zero_unpaired": LossSpec(formulas.apo_zero_unpaired, of="single"),
    "bco": LossSpec(formulas.bco, of="single", shift=True),
}

# those of the package
LOSS_TYPES = tuple(LOSSES)

# What people call a loss where spelling alone would point elsewhere ("dpo" is one letter from "dpop") or nowhere.
_ALSO_KNOWN_AS = {
    "dpo": "sigmoid",
    "cdpo": "sigmoid",
    "rdpo": "robust",
    "slic": "hinge",
    "exo": "exo_pair",
    "nca": "nca_pair",
    "pl": "plackett_luce",
    "s_dpo": "plackett_luce",
    "sdpo": "plackett_luce",
    "listnet": "listwise",
    "infonca": "listwise",
    "sppo": "sppo_hard",
    "lrml": "discopop",
}


def loss_names(loss_type: str | Sequence[str]) -> tuple[str, ...]:
    """``loss_type`` as a tuple of known names, in its order.

    Raises:
        ValueError: a name that does not exist (the message lists those that do, and the nearest), an empty list, or a
            name given twice.
    """
    several = isinstance(loss_type, Sequence) and not isinstance(loss_type, str)
    names: tuple = tuple(loss_type) if several else (loss_type,)  # of whatever was given, until each is looked at
    if not names:
        raise ValueError("loss_type is an empty list; name at least one loss")
    for name in names:
        if not isinstance(name, str) or name not in LOSSES:
            near = [_ALSO_KNOWN_AS.get(str(name)), *difflib.get_close_matches(str(name), LOSSES, n=1)]
            hint = next((f" (did you mean {other!r}?)" for other in near if other), "")
            raise ValueError(f"unknown loss_type {name!r}{hint}; there are: {', '.join(LOSSES)}")
    if len(set(names)) < len(names):
        raise ValueError(f"loss_type names a loss twice: {list(names)}; give it once, with a larger loss weight")
    return names


def needs_reference(loss_type: str | Sequence[str]) -> bool:
    """Whether any of the losses compares with a reference model. Raises ValueError on an unknown name."""
    return any(LOSSES[name].reference for name in loss_names(loss_type))


def needs_lengths(loss_type: str | Sequence[str], *, sft_weight: float = 0.0) -> bool:
    """Whether any of the losses divides by answer lengths in tokens. Raises ValueError on an unknown name.

    ``sft`` (also by way of ``sft_weight``) can do with ``mean_chosen_length`` in place of the lengths, ``sft_seq``
    with the chosen answers' lengths alone; the others need both answers'.
    """
    return any(LOSSES[name].lengths for name in loss_names(loss_type)) or sft_weight > 0


def needs_whole_batch(loss_type: str | Sequence[str]) -> bool:
    """Whether any of the losses couples the pairs of a batch, so that it must see all of them in one call.

    Such a loss gives another value when its batch is cut into micro-batches or spread over workers. Raises ValueError
    on an unknown name.
    """
    return any(LOSSES[name].whole_batch for name in loss_names(loss_type))


def kinds_of(loss_type: str | Sequence[str]) -> tuple[str, ...]:
    """The kinds of examples that the losses are of, in the order of ``KINDS``. Raises ValueError on an unknown name."""
    found = {LOSSES[name].of for name in loss_names(loss_type)}
    return tuple(kind for kind in KINDS if kind in found)


def needs_kl(loss_type: str | Sequence[str]) -> bool:
    """Whether any of the losses needs an estimate of the policy's KL. Raises ValueError on an unknown name."""
    return any(LOSSES[name].kl for name in loss_names(loss_type))


def needs_shift(loss_type: str | Sequence[str]) -> bool:
    """Whether any of the losses needs a running mean of rewards. Raises ValueError on an unknown name."""
    return any(LOSSES[name].shift for name in loss_names(loss_type))
