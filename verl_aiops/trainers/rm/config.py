"""Settings of reward models, read from ``algorithm.rm.*``: one field each, and what must not be together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from verl_aiops.data import PreferenceDataError, PreferenceDataset
from verl_aiops.losses import KINDS, REWARD_LOSSES
from verl_aiops.settings import setting
from verl_aiops.trainers.config import (
    COMPARISONS,
    ConfigError,
    TrainerSettings,
    nearest,
    refuse_of_pairs,
    refuse_yes_from_score,
)
from verl_aiops.trainers.shared_settings import CHECK_SPACE, LOGPROB_BACKEND, PREFLIGHT_ROWS

__all__ = ["RewardModelConfig"]


@dataclass(frozen=True)
class RewardModelConfig(TrainerSettings):
    """Settings of a reward model's training."""

    section = "algorithm.rm"
    export_is_measured = True

    loss_type: str | list[str] = setting(
        "bradley_terry",
        "`bradley_terry`: of pairs; `plackett_luce`: of ranked groups as a whole; `regression`: squared error to the "
        "scores of groups; `binary`: of single answers with a yes or a no, or pairs as one of each. Or a list of them "
        "to be summed (formula and paper of each: `verl_aiops/losses/reward_model.py`).",
        fits=lambda value: isinstance(value, str | list | tuple),
        expected="the name of a loss, or a list of names",
    )
    loss_weights: list[float] | None = setting(
        None,
        "weights of a list of losses, one each, >= 0; null for 1 each.",
        fits=lambda value: value is None or isinstance(value, list | tuple),
        expected="a list of numbers, one per loss, or null",
    )
    score_margin: float = setting(
        0.0,
        "the chosen answer of a pair must lead by this times the gap of both scores: a pair's `margin`, or of a "
        "group's scores (Llama 2, arXiv 2307.09288, eq. 2). 0 leaves gaps out.",
        within="[0, inf)",
    )
    margin: float = setting(0.0, "lead that every chosen answer of a pair should have beside that.", within="[0, inf)")
    label_smoothing: float = setting(
        0.0, "share of labels believed wrong, of `bradley_terry` and `binary`.", within="[0, 0.5)"
    )
    center_rewards: float = setting(
        0.01,
        "coefficient of the term that keeps scores around 0, (r_chosen + r_rejected)^2 (arXiv 2312.09244); of "
        "`bradley_terry` and `plackett_luce`, whose scores could drift else.",
        within="[0, inf)",
    )
    comparisons: str = setting(
        "all",
        "which answers of a ranked group make pairs, as in `algorithm.dpo.comparisons`.",
        choices=COMPARISONS,
    )
    gap_weight: bool = setting(False, "weigh pairs by their gap of scores, as in `algorithm.dpo.gap_weight`.")
    yes_from_score: float | None = setting(
        None, "with `binary`: a group's answers with at least this score count as yes; null refuses groups."
    )
    logprob_backend: str = LOGPROB_BACKEND()
    export_model: bool = setting(
        True,
        "write `trainer.default_local_dir/huggingface` at the end: the classifier (bfloat16) that vLLM, SGLang and the "
        "rollout `hf` serve, with `reward_stats.json`. With `trainer.save_freq=-1` it is all that is written: there is "
        "no checkpoint to go on from.",
    )
    check_space: bool = CHECK_SPACE()
    preflight_rows: int = PREFLIGHT_ROWS()

    # what the trainer asks of any preference run's settings: nothing here has a reference, or a log-prob
    scored = True
    estimates_kl = uses_shift = uses_reference = needs_whole_batch = False
    reference = "none"
    reference_path = None
    reference_sync_steps = 0
    sft_weight = 0.0

    def check_together(self) -> None:
        where = self.section
        for name in self.losses:
            if not isinstance(name, str) or name not in REWARD_LOSSES:
                raise ConfigError(
                    f"{where}.loss_type: {name!r} is no loss of reward models{nearest(name, REWARD_LOSSES)}. Known: "
                    f"{', '.join(REWARD_LOSSES)}."
                )
        if not self.losses or len(set(self.losses)) < len(self.losses):
            raise ConfigError(f"{where}.loss_type={self.loss_type}: expected one loss or several, each once.")
        kinds = self.kinds
        if {"pair", "list"} <= set(kinds):
            raise ConfigError(
                f"{where}.loss_type={self.loss_type}: a group of answers is taken as pairs or as one list. Use losses "
                "of one kind."
            )
        weights = self.loss_weights
        if weights is not None and (
            len(weights) != len(self.losses)
            or not all(isinstance(w, int | float) and math.isfinite(w) and w >= 0 for w in weights)
        ):
            raise ConfigError(f"{where}.loss_weights={weights}: expected {len(self.losses)} numbers, 0 or more.")
        of_pairs = {
            "score_margin": self.score_margin,
            "margin": self.margin,
            "gap_weight": self.gap_weight,
            "comparisons": self.comparisons != "all",
        }
        refuse_of_pairs(self, of_pairs)
        if self.label_smoothing and not {"bradley_terry", "binary"} & set(self.losses):
            raise ConfigError(
                f"{where}.label_smoothing={self.label_smoothing} has no effect on {where}.loss_type={self.loss_type}. "
                "Remove it."
            )
        refuse_yes_from_score(self, "binary")

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses, in their order."""
        several = isinstance(self.loss_type, Sequence) and not isinstance(self.loss_type, str)
        return tuple(self.loss_type) if several else (self.loss_type,)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of examples that the losses are of."""
        found = {REWARD_LOSSES[name] for name in self.losses}
        return tuple(kind for kind in KINDS if kind in found)

    def loss_settings(self) -> dict[str, Any]:
        """Arguments of `objective.RewardObjective`."""
        weights = self.loss_weights or [1.0] * len(self.losses)
        return {
            "losses": dict(zip(self.losses, weights, strict=True)),
            "score_margin": self.score_margin,
            "margin": self.margin,
            "label_smoothing": self.label_smoothing,
            "center": self.center_rewards,
        }

    def check_data(self, data: PreferenceDataset, key: str) -> None:
        """Raises PreferenceDataError where examples lack what the losses look at."""
        items = [data[at] for at in range(len(data))] if {"regression"} & set(self.losses) or self.score_margin else []
        if "regression" in self.losses:
            lacking = [item["id"] for item in items if item["kind"] == "list" and any(map(math.isnan, item["scores"]))]
            if lacking:
                raise PreferenceDataError(
                    f"{key}: {self.section}.loss_type=regression needs the score of every answer, and {len(lacking)} "
                    f"of {len(items)} lists lack some (first: {lacking[0]}). Give groups with scores, or use "
                    "plackett_luce."
                )
        elif self.score_margin and not any(item.get("margin") for item in items):
            raise PreferenceDataError(
                f"{key}: {self.section}.score_margin={self.score_margin} has no effect, as no pair has scores. Give a "
                "margin column, or groups with scores; or remove it."
            )
