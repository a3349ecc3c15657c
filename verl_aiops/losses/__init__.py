"""Preference losses on sums of token log-probs: pure torch, no trainer, no verl.

``compute_dpo_loss`` has every loss of pairs behind one signature, ``compute_answer_loss`` those of single answers with
a yes or a no, ``compute_list_loss`` those of ranked lists; ``table.py`` names them, ``formulas.py`` has the formulas,
``settings.py`` what can be set.
``reward_model.py`` has the losses of reward models, which are of scores.
``label_preferences`` makes the pairs of online DPO from scored answers.
"""

from verl_aiops.losses.answers import WeightAdvice, advise_weights, compute_answer_loss, compute_kto_loss
from verl_aiops.losses.divergence import F_DIVERGENCES
from verl_aiops.losses.dpo import compute_dpo_loss, compute_online_dpo_loss
from verl_aiops.losses.labelling import PAIRING_RULES, Labels, label_groups, label_preferences
from verl_aiops.losses.lists import compute_list_loss, compute_plackett_luce_loss, padded_lists, share_in_order
from verl_aiops.losses.reward_model import (
    REWARD_LOSSES,
    compute_label_loss,
    compute_pair_loss,
    compute_ranking_loss,
    compute_score_loss,
)
from verl_aiops.losses.settings import LossSettings
from verl_aiops.losses.sums import sum_logps
from verl_aiops.losses.table import (
    KINDS,
    LOSS_TYPES,
    LOSSES,
    LossSpec,
    kinds_of,
    needs_kl,
    needs_lengths,
    needs_reference,
    needs_shift,
    needs_whole_batch,
)
from verl_aiops.losses.terms import AnswerTerms, ListTerms, PairTerms, per_token
from verl_aiops.losses.ties import rounding, share_right
from verl_aiops.losses.validate import check_settings, validate_loss_args

Knobs = LossSettings  # its name before 0.3

__all__ = [
    "F_DIVERGENCES",
    "KINDS",
    "LOSSES",
    "LOSS_TYPES",
    "PAIRING_RULES",
    "REWARD_LOSSES",
    "AnswerTerms",
    "Knobs",
    "Labels",
    "LossSettings",
    "ListTerms",
    "LossSpec",
    "PairTerms",
    "WeightAdvice",
    "advise_weights",
    "check_settings",
    "compute_answer_loss",
    "compute_dpo_loss",
    "compute_kto_loss",
    "compute_label_loss",
    "compute_list_loss",
    "compute_online_dpo_loss",
    "compute_pair_loss",
    "compute_plackett_luce_loss",
    "compute_ranking_loss",
    "compute_score_loss",
    "kinds_of",
    "label_groups",
    "label_preferences",
    "needs_kl",
    "needs_lengths",
    "needs_reference",
    "needs_shift",
    "needs_whole_batch",
    "padded_lists",
    "per_token",
    "rounding",
    "share_in_order",
    "share_right",
    "sum_logps",
    "validate_loss_args",
]
