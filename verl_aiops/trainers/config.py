"""The knobs under ``algorithm.dpo``: one dataclass that holds every default and its check."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import DictConfig, ListConfig, OmegaConf

from verl_aiops import losses

if TYPE_CHECKING:
    from typing import Self

__all__ = ["PREFERENCE_MODEL_TYPE", "SELF_PLAY", "ConfigError", "DPOConfig", "OnlineDPOConfig", "nearest"]

# the engine registry's key for engines that give answer log-probs
PREFERENCE_MODEL_TYPE = "preference_language_model"
SELF_PLAY = "self_play"
LOGPROB_BACKENDS = ("auto", "rows", "shared_prompt")


class ConfigError(ValueError):
    """A setting that cannot work; the message names the key, what was expected and how to mend it."""


def nearest(name: str, known) -> str:
    """``" (did you mean 'x'?)"`` for the closest of ``known``, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


@dataclass(frozen=True)
class PreferenceConfig:
    """What offline and online DPO have in common.

    The loss settings are those of :func:`verl_aiops.losses.compute_dpo_loss`, under the same names.

    Attributes:
        beta: strength of the pull to the reference. Per-token losses want it on another scale: `sigmoid_norm` and
            `simpo` 1 to 10.
        loss_type: the loss, or a list of losses to be summed. Formula and paper of each:
            `verl_aiops/losses/formulas.py`.
        loss_weights: weights of a list of losses, one each.
        sft_weight: adds this much of the loss `sft`, the negative log-likelihood of chosen answers, to any loss.
        label_smoothing: share of labels believed wrong, for `sigmoid` (cDPO), `robust`, `exo_pair`, `aot`,
            `aot_unpaired`.
        simpo_gamma: target margin of `simpo`, in units of reward.
        dpop_lambda: penalty of `dpop` on chosen answers that grow less likely.
        discopop_tau: temperature of `discopop`.
        f_divergence_type: divergence that holds the policy to its reference (f-DPO, arXiv 2309.16240).
        f_alpha_divergence_coef: alpha of `alpha_divergence`.
        ld_alpha: LD-DPO (arXiv 2409.06411): weight of the tokens beyond the shorter answer's length; null for none.
        reference_sync_steps: move the reference every so many steps (TR-DPO, arXiv 2404.09656); 0 keeps the initial
            policy. Offline DPO needs `reference=live` for it.
        reference_mixup: how far the reference moves: 1 copies the policy, less mixes it in.
        logprob_backend: `shared_prompt`: a prompt goes through the model once for all its answers; `rows`: once with
            each, for any model; `auto`: the first where the model allows it. The run says which and why.
        export_model: write `trainer.default_local_dir/huggingface` at the end (bfloat16, by verl's model merger).
    """

    section: ClassVar[str]

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
    reference_sync_steps: int = 0
    reference_mixup: float = 1.0
    logprob_backend: str = "auto"
    export_model: bool = True

    @classmethod
    def from_config(cls, config: DictConfig | Mapping[str, Any]) -> Self:
        """Build from a whole verl configuration; unknown keys and bad values raise :class:`ConfigError`."""
        section = OmegaConf.select(config, cls.section) if isinstance(config, DictConfig) else config
        values = {} if section is None else dict(section)
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"{cls.section}.{key}: no such setting{nearest(key, known)}. Known: {', '.join(known)}."
                )
        plain = {
            k: OmegaConf.to_container(v, resolve=True) if isinstance(v, ListConfig | DictConfig) else v
            for k, v in values.items()
        }
        result = cls(**plain)
        result._check()
        return result

    def _check(self) -> None:
        where = self.section
        if self.loss_weights is not None and not isinstance(self.loss_weights, list | tuple):
            raise ConfigError(f"{where}.loss_weights={self.loss_weights!r}: expected a list, one per loss.")
        try:
            losses.validate_loss_args(**self.loss_settings())
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
        if self.logprob_backend not in LOGPROB_BACKENDS:
            raise ConfigError(
                f"{where}.logprob_backend={self.logprob_backend!r}: expected one of {', '.join(LOGPROB_BACKENDS)}."
            )
        if not isinstance(self.export_model, bool):
            raise ConfigError(f"{where}.export_model={self.export_model!r}: expected true or false.")
        if self.ld_alpha is not None and not (isinstance(self.ld_alpha, Real) and 0.0 <= self.ld_alpha <= 1.0):
            raise ConfigError(f"{where}.ld_alpha={self.ld_alpha!r}: expected a number from 0 to 1, or null.")
        self._check_counts("reference_sync_steps")
        if not (isinstance(self.reference_mixup, Real) and 0.0 < self.reference_mixup <= 1.0):
            raise ConfigError(
                f"{where}.reference_mixup={self.reference_mixup!r}: expected more than 0 and at most 1 "
                "(1 copies the policy, less mixes it into the reference)."
            )
        if self.reference_mixup != 1.0 and not self.reference_sync_steps:
            raise ConfigError(
                f"{where}.reference_mixup={self.reference_mixup} has no effect without "
                f"{where}.reference_sync_steps. Set both, or remove it."
            )

    def _check_counts(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"{self.section}.{name}={value!r}: expected a whole number, 0 or more.")

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


@dataclass(frozen=True)
class DPOConfig(PreferenceConfig):
    """Settings of offline DPO, read from ``algorithm.dpo.*``.

    Attributes:
        reference: `cached`: every pair is scored once by the reference and kept on disk; `live`: scored at every step.
        reference_path: another model as reference, with `cached`; null for the initial policy, or the LoRA base.
        reference_cache_dir: where scores are kept; null for `$VERL_AIOPS_CACHE/reference`, or
            `~/.cache/verl-aiops/reference`.
        reference_verify_pairs: so many cached pairs are scored again at the start and compared; 0 for none.
        preflight_rows: rows of each file that are rendered and checked before Ray starts; 0 for none.
    """

    reference: str = "cached"
    reference_path: str | None = None
    reference_cache_dir: str | None = None
    reference_verify_pairs: int = 4
    preflight_rows: int = 2000

    section: ClassVar[str] = "algorithm.dpo"

    def _check(self) -> None:
        super()._check()
        if self.reference not in ("cached", "live"):
            raise ConfigError(f"algorithm.dpo.reference={self.reference!r}: expected 'cached' or 'live'.")
        self._check_counts("reference_verify_pairs", "preflight_rows")
        if self.reference_sync_steps and self.reference != "live":
            raise ConfigError(
                "algorithm.dpo.reference_sync_steps is set, so the reference moves during training, but "
                "algorithm.dpo.reference=cached holds its log-probs fixed. Set algorithm.dpo.reference=live."
            )
        if self.reference == "live" and self.reference_path:
            raise ConfigError(
                "algorithm.dpo.reference_path works with algorithm.dpo.reference=cached (each pair is scored once by "
                "that model); a live reference starts as a copy of the policy. Remove one of the two settings."
            )


@dataclass(frozen=True)
class OnlineDPOConfig(PreferenceConfig):
    """Settings of online DPO, read from ``algorithm.online_dpo.*``.

    Attributes:
        rule: which answers to a prompt make pairs. `best_vs_worst`: the pair with the largest gap; `all_pairs`: every
            real preference; `random_pair`: one of them; `best_vs_random`: the best answer against one at random;
            `self_play`: the data's own answer against the policy's (SPIN, arXiv 2401.01335).
        min_gap: smallest difference of scores that makes a pair.
        eos_penalty: taken from the score of an answer that did not end by itself.
        importance_clip: weight of pairs that are no longer on-policy, at most this (truncated importance sampling,
            Ionides 2008); null for no weights.
        max_failed_share: of answers without a finite score; above it the run ends.
    """

    rule: str = "best_vs_worst"
    min_gap: float = 0.0
    eos_penalty: float = 0.0
    importance_clip: float | None = None
    max_failed_share: float = 0.1

    section: ClassVar[str] = "algorithm.online_dpo"

    def _check(self) -> None:
        super()._check()
        rules = (*losses.PAIRING_RULES, SELF_PLAY)
        if self.rule not in rules:
            raise ConfigError(
                f"{self.section}.rule={self.rule!r}: no such rule{nearest(self.rule, rules)}. Known: "
                f"{', '.join(rules)}."
            )
        for name, most in (("min_gap", None), ("eos_penalty", None), ("max_failed_share", 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or value < 0 or (most and value > most):
                raise ConfigError(
                    f"{self.section}.{name}={value!r}: expected a number, 0 or more{' and at most 1' * bool(most)}."
                )
        clip = self.importance_clip
        if clip is not None and not (isinstance(clip, Real) and not isinstance(clip, bool) and clip >= 1):
            raise ConfigError(f"{self.section}.importance_clip={clip!r}: expected a number, 1 or more, or null.")
        if losses.needs_whole_batch(self.loss_type):
            raise ConfigError(
                f"{self.section}.loss_type={self.loss_type} sorts over a whole batch of pairs, but a step of online "
                "DPO has as many pairs as its answers make. Use another loss."
            )

    @property
    def self_play(self) -> bool:
        return self.rule == SELF_PLAY
