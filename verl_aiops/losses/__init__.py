"""Preference losses on sums of token log-probs: pure torch, no trainer, no verl.

``compute_dpo_loss`` has every loss behind one signature; ``table.py`` lists them, ``formulas.py`` has the formulas,
``settings.py`` what can be set.
``label_preferences`` makes the pairs of online DPO from scored answers.
"""

from verl_aiops.losses.divergence import F_DIVERGENCES
from verl_aiops.losses.dpo import compute_dpo_loss, compute_online_dpo_loss
from verl_aiops.losses.labelling import PAIRING_RULES, Labels, label_groups, label_preferences
from verl_aiops.losses.settings import LossSettings
from verl_aiops.losses.sums import sum_logps
from verl_aiops.losses.table import (
    LOSS_TYPES,
    LOSSES,
    LossSpec,
    needs_lengths,
    needs_reference,
    needs_whole_batch,
)
from verl_aiops.losses.terms import PairTerms, per_token
from verl_aiops.losses.validate import check_settings, validate_loss_args

Knobs = LossSettings  # its name before 0.3

__all__ = [
    "F_DIVERGENCES",
    "LOSSES",
    "LOSS_TYPES",
    "PAIRING_RULES",
    "Knobs",
    "Labels",
    "LossSettings",
    "LossSpec",
    "PairTerms",
    "check_settings",
    "compute_dpo_loss",
    "compute_online_dpo_loss",
    "label_groups",
    "label_preferences",
    "needs_lengths",
    "needs_reference",
    "needs_whole_batch",
    "per_token",
    "sum_logps",
    "validate_loss_args",
]
