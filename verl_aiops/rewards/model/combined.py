"""A rule's reward and a reward model's, made one: the settings under ``reward.combined`` and the formulas.

With ``rule`` the rule's score, ``rm`` the shaped score of the reward model (`shaping`), and ``a``, ``b`` the shares
``rule_weight`` and ``rm_weight`` have of their sum:

    rule_only     rule
    rm_only       rm
    weighted      a * rule + b * rm
    gated         a * rule + b * (rm where the rule's ``json_ok`` is 1, else the lowest value that rm can have)
    rm_tiebreak   rule + tiebreak_step * u, where u in [0, 1) is rm scaled by its bounds
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

from verl_aiops.rewards.model.transform import NORMALISATIONS, SQUASHES, Moments, Shaping, read_stats

__all__ = ["MODES", "CombinedSettings", "combine", "no_rule"]

WHERE = "reward.combined"
MODES = ("rule_only", "rm_only", "weighted", "gated", "rm_tiebreak")
ON_FAILURE = ("fail", "drop")
_JUST_BELOW_ONE = 1 - 2**-20


@dataclass(frozen=True)
class CombinedSettings:
    """What ``reward.combined`` holds.

    Attributes:
        mode: which of the two counts, and how; the formulas are in `verl_aiops/rewards/model/combined.py`.
        rule_weight: weight of the rule's score in `weighted` and `gated`; only its ratio to `rm_weight` counts.
        rm_weight: weight of the reward model's shaped score in `weighted` and `gated`.
        tiebreak_step: of `rm_tiebreak`: rules that differ by this much or more are never overruled.
        squash: function that the reward model's normalised, shifted and scaled score goes through.
        normalise: `none`; `stored`: by mean and standard deviation of held-out data (`rm_mean`, `rm_std`, or the file
            that train-rm left beside the model); `running`: by those of all answers of earlier steps.
        rm_mean: mean of raw scores for `stored`, and for `running` before the first step is over.
        rm_std: standard deviation of raw scores; goes with `rm_mean`.
        temperature: scale of the normalised score, by which it is divided.
        threshold: the normalised score that becomes 0.5 under `sigmoid` and 0 under `tanh`.
        clip: `[low,high]`, after `squash`; null for no limits.
        timeout_s: seconds for one request.
        deadline_s: seconds for all attempts of one answer together.
        attempts: requests at most for one answer.
        backoff_s: seconds before the second attempt; doubled for each further one, at most 30.
        concurrency: requests at a time from one of `reward.num_workers`.
        on_failure: `fail` ends the run at the first answer without a score; `drop` leaves such answers out.
        max_failed_share: of a step's answers; with `drop`, more end the run.
    """

    mode: str = "weighted"
    rule_weight: float = 0.5
    rm_weight: float = 0.5
    tiebreak_step: float = 0.01
    squash: str = "sigmoid"
    normalise: str = "none"
    rm_mean: float | None = None
    rm_std: float | None = None
    temperature: float = 1.0
    threshold: float = 0.0
    clip: tuple[float, float] | None = None
    timeout_s: float = 60.0
    deadline_s: float = 300.0
    attempts: int = 5
    backoff_s: float = 1.0
    concurrency: int = 64
    on_failure: str = "fail"
    max_failed_share: float = 0.1
    shaping: Shaping = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(
            self, "shaping", Shaping(self.squash, float(self.temperature), float(self.threshold), self.clip)
        )

    @property
    def uses_rm(self) -> bool:
        return self.mode != "rule_only"

    @classmethod
    def from_config(cls, given: Mapping[str, Any] | None) -> CombinedSettings:
        """Read and check them.

        Raises:
            ValueError: an unknown key or a value that cannot work; the message names the key.
        """
        known = [f.name for f in fields(cls) if f.init]
        values = dict(given or {})
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1)
                hint = f", did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
                raise ValueError(f"{WHERE}.{key}: no such setting{hint}")
        if values.get("clip") is not None:
            values["clip"] = tuple(values["clip"]) if isinstance(values["clip"], list | tuple) else values["clip"]
        for name, choices in (
            ("mode", MODES),
            ("squash", tuple(SQUASHES)),
            ("normalise", NORMALISATIONS),
            ("on_failure", ON_FAILURE),
        ):
            if values.get(name, choices[0]) not in choices:
                raise ValueError(f"{WHERE}.{name}={values[name]}: expected one of {', '.join(choices)}")
        for name, (low, high, wanted) in _NUMBERS.items():
            if name in values and not (name in ("rm_mean", "rm_std") and values[name] is None):
                _check_number(name, values[name], low, high, wanted)
        for name in ("attempts", "concurrency"):
            value = values.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{WHERE}.{name}={value}: expected a whole number, 1 or more")
        _check_clip(values.get("clip"))
        settings = cls(**values)
        settings._check_together()
        return settings

    def _check_together(self) -> None:
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
            ValueError: ``stored`` without numbers, see `shaping.read_stats`.
        """
        if self.normalise == "none":
            return Moments()
        if self.rm_mean is not None:
            return Moments(float(self.rm_mean), float(self.rm_std))
        return read_stats(model_path or "") if self.normalise == "stored" else Moments()


# name: smallest value (excluded where the text says so), largest value, what is expected
_NUMBERS = {
    "rule_weight": (0.0, math.inf, "a number, 0 or more"),
    "rm_weight": (0.0, math.inf, "a number, 0 or more"),
    "tiebreak_step": (1e-6, 1.0, "a number from 0.000001 to 1"),
    "rm_mean": (-math.inf, math.inf, "a number"),
    "rm_std": (1e-12, math.inf, "a number above 0"),
    "temperature": (1e-6, math.inf, "a number above 0"),
    "threshold": (-math.inf, math.inf, "a number"),
    "timeout_s": (1e-3, math.inf, "seconds, above 0"),
    "deadline_s": (1e-3, math.inf, "seconds, above 0"),
    "backoff_s": (0.0, math.inf, "seconds, 0 or more"),
    "max_failed_share": (0.0, 1.0, "a share from 0 to 1"),
}


def _check_number(name: str, value: Any, low: float, high: float, wanted: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{WHERE}.{name}={value}: expected {wanted}")


def _check_clip(clip: Any) -> None:
    if clip is None:
        return
    plain = isinstance(clip, tuple) and len(clip) == 2
    numbers = plain and all(isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x) for x in clip)
    if not numbers or clip[0] >= clip[1]:
        raise ValueError(f"{WHERE}.clip={list(clip) if plain else clip}: expected [low,high] with low below high")


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
