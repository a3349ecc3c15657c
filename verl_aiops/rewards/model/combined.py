"""A rule's reward and a reward model's, made one: the settings under ``reward.combined`` and the formulas.

With ``rule`` the rule's score, ``rm`` the shaped score of the reward model (`transform`), and ``a``, ``b`` the shares
``rule_weight`` and ``rm_weight`` have of their sum:

    rule_only     rule
    rm_only       rm
    weighted      a * rule + b * rm
    gated         a * rule + b * (rm where the rule's ``json_ok`` is 1, else the lowest value that rm can have)
    rm_tiebreak   rule + tiebreak_step * u, where u in [0, 1) is rm scaled by its bounds
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

from verl_aiops.rewards.model import patience_settings
from verl_aiops.rewards.model.ensemble import ENSEMBLES, Member, read_members
from verl_aiops.rewards.model.transform import NORMALISATIONS, SQUASHES, Moments, Shaping, read_stats
from verl_aiops.settings import Settings, setting

__all__ = ["MODES", "CombinedSettings", "combine", "no_rule"]

WHERE = "reward.combined"
MODES = ("rule_only", "rm_only", "weighted", "gated", "rm_tiebreak")
_JUST_BELOW_ONE = 1 - 2**-20


def _is_range(clip: Any) -> bool:
    return (
        isinstance(clip, list | tuple)
        and len(clip) == 2
        and all(isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x) for x in clip)
        and clip[0] < clip[1]
    )


@dataclass(frozen=True)
class CombinedSettings(Settings):
    """What ``reward.combined`` holds."""

    section = WHERE

    mode: str = setting(
        "weighted",
        "which of the two counts, and how, by the formulas in `verl_aiops/rewards/model/combined.py`.",
        choices=MODES,
    )
    rule_weight: float = setting(
        0.5,
        "weight of the rule's score in `weighted` and `gated`; only its ratio to `rm_weight` counts.",
        within="[0, inf)",
    )
    rm_weight: float = setting(
        0.5, "weight of the reward model's shaped score in `weighted` and `gated`.", within="[0, inf)"
    )
    tiebreak_step: float = setting(
        0.01, "of `rm_tiebreak`: rules that differ by this much or more are never overruled.", within="[0.000001, 1]"
    )
    squash: str = setting(
        "sigmoid",
        "function that the reward model's normalised, shifted and scaled score goes through.",
        choices=tuple(SQUASHES),
    )
    normalise: str = setting(
        "none",
        "`none`; `stored`: by mean and standard deviation of held-out data (`rm_mean`, `rm_std`, or the file that "
        "train-rm left beside the model); `running`: by those of all answers of earlier steps.",
        choices=NORMALISATIONS,
    )
    rm_mean: float | None = setting(
        None, "mean of raw scores for `stored`, and for `running` before the first step is over."
    )
    rm_std: float | None = setting(
        None,
        "standard deviation of raw scores; goes with `rm_mean`.",
        within="[1e-12, inf)",
        expected="a number above 0, or null",
    )
    temperature: float = setting(
        1.0, "scale of the normalised score, by which it is divided.", within="[1e-6, inf)", expected="a number above 0"
    )
    threshold: float = setting(0.0, "the normalised score that becomes 0.5 under `sigmoid` and 0 under `tanh`.")
    clip: tuple[float, float] | None = setting(
        None,
        "`[low,high]`, after `squash`; null for no limits.",
        fits=_is_range,
        expected="[low,high] with low below high",
    )
    members: list[dict] | None = setting(
        None,
        "further reward models beside `reward.reward_model`, which are served elsewhere: a list of sections with "
        "`path` (folder with the tokenizer), `address` (`host:port`), `server` (`vllm`, `sglang`, `hf`), `model` (the "
        "server's name of it; default `path`) and `weight` (default 1).",
        fits=lambda value: value is None or isinstance(value, list | tuple),
        expected="a list of sections, or null",
    )
    ensemble: str = setting(
        "mean",
        "how the members' shaped scores become one, by the formulas in `verl_aiops/rewards/model/ensemble.py`.",
        choices=ENSEMBLES,
    )
    ensemble_k: float = setting(
        1.0, "of `mean_minus_std`: standard deviations between members that are taken off.", within="[0, inf)"
    )
    timeout_s: float = patience_settings.TIMEOUT_S()
    deadline_s: float = patience_settings.deadline_s("answer")
    attempts: int = patience_settings.attempts(5, "answer")
    backoff_s: float = patience_settings.BACKOFF_S()
    concurrency: int = patience_settings.concurrency(64)
    on_failure: str = setting(
        "fail",
        "`fail` ends the run at the first answer without a score; `drop` leaves such answers out.",
        choices=("fail", "drop"),
    )
    max_failed_share: float = setting(
        0.1, "of a step's answers; with `drop`, more end the run.", within="[0, 1]", expected="a share from 0 to 1"
    )

    @cached_property
    def others(self) -> tuple[Member, ...]:
        """The members beside ``reward.reward_model``."""
        return read_members(self.members or (), f"{WHERE}.members")

    @cached_property
    def shaping(self) -> Shaping:
        return Shaping(self.squash, float(self.temperature), float(self.threshold), self.clip)

    @property
    def uses_rm(self) -> bool:
        return self.mode != "rule_only"

    def check_together(self) -> None:
        if self.ensemble != "mean" and not self.others:
            raise ValueError(f"{WHERE}.ensemble={self.ensemble} has no effect without {WHERE}.members")
        if self.others and self.normalise == "running":
            raise ValueError(
                f"{WHERE}.normalise=running keeps the numbers of one reward model. With {WHERE}.members use stored, "
                "which reads each one's own file, or none"
            )
        if self.mode in ("weighted", "gated") and self.rule_weight + self.rm_weight <= 0:
            raise ValueError(f"{WHERE}.rule_weight and .rm_weight are both 0: nothing would count")
        low, high = self.shaping.bounds
        if self.mode == "gated" and math.isinf(low):
            raise ValueError(
                f"{WHERE}.mode=gated: an answer that the gate shuts out gets the lowest score of the reward model, "
                f"which squash={self.squash} does not have. Set {WHERE}.squash=sigmoid or tanh, or "
                f"{WHERE}.clip=[low,high]"
            )
        if self.mode == "rm_tiebreak" and (math.isinf(low) or math.isinf(high)):
            raise ValueError(
                f"{WHERE}.mode=rm_tiebreak needs bounded scores of the reward model. Set {WHERE}.squash=sigmoid or "
                f"tanh, or {WHERE}.clip=[low,high]"
            )
        if (self.rm_mean is None) != (self.rm_std is None):
            raise ValueError(f"{WHERE}.rm_mean and .rm_std belong together: set both or none")

    def first_moments(self, model_path: str | None) -> Moments:
        """What raw scores are normalised by at first, and under ``stored`` always.

        Raises:
            ValueError: ``stored`` without numbers, see `transform.read_stats`.
        """
        if self.normalise == "none":
            return Moments()
        if self.rm_mean is not None and self.rm_std is not None:
            return Moments(float(self.rm_mean), float(self.rm_std))
        return read_stats(model_path or "") if self.normalise == "stored" else Moments()


def combine(settings: CombinedSettings, rule: float, rm: float, json_ok: bool) -> float:
    """One answer's reward; the module's text has the formulas.

    Args:
        rule: the rule's score.
        rm: the shaped score of the reward model; NaN where there is none.
        json_ok: whether the rule found a well-formed answer; only ``gated`` asks.

    Returns:
        NaN where the mode needs a score of the reward model and there is none.
    """
    if settings.mode == "rule_only":
        return rule
    if math.isnan(rm):
        return rm
    if settings.mode == "rm_only":
        return rm
    low, high = settings.shaping.bounds
    if settings.mode == "rm_tiebreak":
        return rule + settings.tiebreak_step * min((rm - low) / (high - low), _JUST_BELOW_ONE)
    counted = low if settings.mode == "gated" and not json_ok else rm
    both = settings.rule_weight + settings.rm_weight
    return (settings.rule_weight * rule + settings.rm_weight * counted) / both


def no_rule(data_source, solution_str, ground_truth, extra_info=None, **kwargs) -> dict[str, float]:
    """The rule of a run that has none (``rm_only`` on data without a rule's ground truth): 0 for everything."""
    return {"score": 0.0}
