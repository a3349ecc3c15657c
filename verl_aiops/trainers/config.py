"""The knobs under ``algorithm.dpo``: one dataclass that holds every default and its check."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from verl_aiops import losses

__all__ = ["PREFERENCE_MODEL_TYPE", "ConfigError", "DPOConfig", "nearest"]

# the engine registry's key for engines that give answer log-probs
PREFERENCE_MODEL_TYPE = "preference_language_model"


class ConfigError(ValueError):
    """A setting that cannot work; the message names the key, what was expected and how to mend it."""


def nearest(name: str, known) -> str:
    """``" (did you mean 'x'?)"`` for the closest of ``known``, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


@dataclass(frozen=True)
class DPOConfig:
    """Settings of offline DPO, read from ``algorithm.dpo.*``.

    The loss settings are those of :func:`verl_aiops.losses.compute_dpo_loss`, under the same names.
    """

    beta: float = 0.1
    loss_type: str | list[str] = "sigmoid"
    loss_weights: list[float] | None = None
    sft_weight: float = 0.0
    label_smoothing: float = 0.0
    simpo_gamma: float = 0.5
    dpop_lambda: float = 50.0
    discopop_tau: float = 0.05
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    ld_alpha: float | None = None
    reference: str = "cached"
    reference_path: str | None = None
    reference_cache_dir: str | None = None
    reference_verify_pairs: int = 4
    reference_sync_steps: int = 0
    reference_mixup: float = 1.0
    logprob_backend: str = "auto"
    preflight_rows: int = 2000
    export_model: bool = True

    @classmethod
    def from_config(cls, config: DictConfig | Mapping[str, Any]) -> DPOConfig:
        """Build from a whole verl configuration; unknown keys and bad values raise :class:`ConfigError`."""
        section = OmegaConf.select(config, "algorithm.dpo") if isinstance(config, DictConfig) else config
        values = {} if section is None else dict(section)
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"algorithm.dpo.{key}: no such setting{nearest(key, known)}. Known: {', '.join(known)}."
                )
        plain = {
            k: OmegaConf.to_container(v, resolve=True) if isinstance(v, ListConfig | DictConfig) else v
            for k, v in values.items()
        }
        result = cls(**plain)
        result._check()
        return result

    def _check(self) -> None:
        if self.loss_weights is not None and not isinstance(self.loss_weights, list | tuple):
            raise ConfigError(f"algorithm.dpo.loss_weights={self.loss_weights!r}: expected a list, one per loss.")
        try:
            losses.validate_loss_args(**self.loss_settings())
        except ValueError as error:
            raise ConfigError(f"algorithm.dpo: {error}") from None
        if self.reference not in ("cached", "live"):
            raise ConfigError(f"algorithm.dpo.reference={self.reference!r}: expected 'cached' or 'live'.")
        if self.logprob_backend not in ("auto", "rows"):
            raise ConfigError(f"algorithm.dpo.logprob_backend={self.logprob_backend!r}: expected 'auto' or 'rows'.")
        if self.ld_alpha is not None and not (isinstance(self.ld_alpha, Real) and 0.0 <= self.ld_alpha <= 1.0):
            raise ConfigError(f"algorithm.dpo.ld_alpha={self.ld_alpha!r}: expected a number from 0 to 1, or null.")
        for name in ("reference_verify_pairs", "reference_sync_steps", "preflight_rows"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"algorithm.dpo.{name}={value!r}: expected a whole number, 0 or more.")
        if not (isinstance(self.reference_mixup, Real) and 0.0 < self.reference_mixup <= 1.0):
            raise ConfigError(
                f"algorithm.dpo.reference_mixup={self.reference_mixup!r}: expected more than 0 and at most 1 "
                "(1 copies the policy, less mixes it into the reference)."
            )
        if self.reference_sync_steps and self.reference != "live":
            raise ConfigError(
                "algorithm.dpo.reference_sync_steps is set, so the reference moves during training, but "
                "algorithm.dpo.reference=cached holds its log-probs fixed. Set algorithm.dpo.reference=live."
            )
        if self.reference_mixup != 1.0 and not self.reference_sync_steps:
            raise ConfigError(
                f"algorithm.dpo.reference_mixup={self.reference_mixup} has no effect without "
                "algorithm.dpo.reference_sync_steps. Set both, or remove it."
            )
        if self.reference == "live" and self.reference_path:
            raise ConfigError(
                "algorithm.dpo.reference_path works with algorithm.dpo.reference=cached (each pair is scored once by "
                "that model); a live reference starts as a copy of the policy. Remove one of the two settings."
            )

    def loss_settings(self) -> dict[str, Any]:
        """Keyword arguments for the loss functions."""
        names = (
            "beta",
            "loss_type",
            "loss_weights",
            "sft_weight",
            "label_smoothing",
            "simpo_gamma",
            "dpop_lambda",
            "discopop_tau",
            "f_divergence_type",
            "f_alpha_divergence_coef",
        )
        return {name: getattr(self, name) for name in names}

    @property
    def uses_reference(self) -> bool:
        return losses.needs_reference(self.loss_type)
