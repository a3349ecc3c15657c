"""Settings of the trainers, under ``algorithm``, ``algorithm.dpo`` and ``algorithm.online_dpo``: one field each, and
what must not be together."""

from __future__ import annotations

from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from verl_aiops import losses
from verl_aiops.settings import Settings, nearest, setting

__all__ = [
    "PREFERENCE_MODEL_TYPE",
    "REWARD_MODEL_TYPE",
    "SELF_PLAY",
    "SHARED_POLICY",
    "SHARED_VALUE",
    "ConfigError",
    "DPOConfig",
    "OnlineDPOConfig",
    "RLConfig",
    "nearest",
    "shares_prompts",
]

# the engine registry's keys for engines that give answer log-probs, scores of answers, and for policy and critic of
# GRPO and PPO
PREFERENCE_MODEL_TYPE = "preference_language_model"
REWARD_MODEL_TYPE = "reward_model"
SHARED_POLICY, SHARED_VALUE = "shared_prompt_language_model", "shared_prompt_value_model"
SELF_PLAY = "self_play"
# which answers of a ranked group are compared
COMPARISONS = ("all", "best", "adjacent")
LOGPROB_BACKENDS = ("auto", "rows", "shared_prompt")
RL_BACKENDS = ("auto", "shared_prompt", "stock")
RULES = (*losses.PAIRING_RULES, SELF_PLAY)


class ConfigError(ValueError):
    """A setting that cannot work; the message names the key, what was expected and how to mend it."""


def shares_prompts(config: DictConfig, role: str = "logprob") -> bool:
    """Whether the check before Ray gave the policy, or with ``critic`` the critic, an engine that shares prompts."""
    return OmegaConf.select(config, f"algorithm.{role}_backend") == "shared_prompt"


class TrainerSettings(Settings):
    """Settings whose faults are `ConfigError`s.

    ``export_is_measured``: what is exported holds numbers that workers compute, so it cannot be made without them.
    """

    export_is_measured: ClassVar[bool] = False

    @classmethod
    def refused(cls, name: str, value: Any, wanted: str) -> ValueError:
        return ConfigError(f"{cls.section}{'.' * bool(name)}{name}={value!r}: expected {wanted}.")

    @classmethod
    def unknown(cls, key: str, known: list[str]) -> ValueError:
        return ConfigError(f"{cls.section}.{key}: no such setting{nearest(key, known)}. Known: {', '.join(known)}.")


@dataclass(frozen=True)
class RLConfig(TrainerSettings):
    """What GRPO, PPO and their kin read from ``algorithm.*`` beside verl's own keys."""

    section = "algorithm"

    logprob_backend: str | None = setting(
        None,
        "`shared_prompt`: what rows begin with in common goes through the policy, and the reference, once for all of "
        "them; `stock`: verl's own engine; `auto`: the first where model and settings allow it. The run says "
        "which and why. Null leaves everything to verl.",
        choices=RL_BACKENDS,
    )
    critic_backend: str | None = setting(
        None,
        "the same of PPO's critic, `shared_prompt` or `stock`. Never set by hand: it follows from "
        "`algorithm.logprob_backend` and the critic's model.",
        choices=RL_BACKENDS[1:],
    )

    @classmethod
    def from_section(cls, section: Any) -> RLConfig:
        """Its own keys, and those that are close to one of them; all others are verl's."""
        return super().from_section({key: section[key] for key in section or {} if cls.concerns(key)})

    @classmethod
    def asked(cls, config: DictConfig) -> bool:
        """Whether a verl configuration asks for anything of it, or misspells that."""
        named = [key for key in config.algorithm if cls.concerns(key)]
        return any(key != "logprob_backend" or config.algorithm[key] not in (None, "stock") for key in named)

    @classmethod
    def concerns(cls, key: object) -> bool:
        return bool(get_close_matches(str(key), [field.name for field in fields(cls)], 1, cutoff=0.8))


@dataclass(frozen=True)
class PreferenceConfig(losses.LossSettings, TrainerSettings):
    """What offline and online DPO have in common: the settings of the loss, and how log-probs are computed."""

    ld_alpha: float | None = setting(
        None,
        "LD-DPO (arXiv 2409.06411): weight of the tokens beyond the shorter answer's length; null for none.",
        within="[0, 1]",
    )
    reference_sync_steps: int = setting(
        0,
        "move the reference every so many steps (TR-DPO, arXiv 2404.09656); 0 keeps the initial policy. Offline DPO "
        "needs `reference=live` for it.",
        within="[0, inf)",
    )
    reference_mixup: float = setting(
        1.0,
        "how far the reference moves: 1 copies the policy, less mixes it in.",
        within="(0, 1]",
        expected="more than 0 and at most 1 (1 copies the policy, less mixes it into the reference)",
    )
    logprob_backend: str = setting(
        "auto",
        "`shared_prompt`: a prompt goes through the model once for all its answers; `rows`: once with each, for any "
        "model; `auto`: the first where the model allows it. The run says which and why.",
        choices=LOGPROB_BACKENDS,
    )
    router_aux_loss_coef: float = setting(
        0.0,
        "of a mixture of experts: factor of the loss that keeps its routers from sending all tokens to few experts "
        "(arXiv 2101.03961, eq. 4 to 6). 0 leaves it out, as verl does; TRL takes the model's own, mostly 0.001. Needs "
        "`logprob_backend=shared_prompt`.",
        within="[0, inf)",
    )
    export_model: bool = setting(
        True,
        "write `trainer.default_local_dir/huggingface` at the end (bfloat16, in files of up to 5 GB, by verl's model "
        "merger). With `trainer.save_freq=-1` it is all that is written: there is no checkpoint to go on from.",
    )
    check_space: bool = setting(
        True, "refuse a run whose model, and one checkpoint, do not fit on the disk; `false` warns and goes on."
    )

    def check_together(self) -> None:
        where = self.section
        if self.loss_weights is not None and not isinstance(self.loss_weights, list | tuple):
            raise self.refused("loss_weights", self.loss_weights, "a list, one per loss")
        try:
            losses.check_settings(self)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
        if self.ld_alpha is not None and "pair" not in losses.kinds_of(self.loss_type):
            raise ConfigError(
                f"{where}.ld_alpha={self.ld_alpha} shortens the longer answer of a pair, and {where}.loss_type="
                f"{self.loss_type} is no loss of pairs. Remove ld_alpha."
            )
        if self.reference_mixup != 1.0 and not self.reference_sync_steps:
            raise ConfigError(
                f"{where}.reference_mixup={self.reference_mixup} has no effect without "
                f"{where}.reference_sync_steps. Set both, or remove it."
            )

    # whether conversations are read as a reward model reads them, for the score of each answer
    scored = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of examples that the losses are of."""
        return losses.kinds_of(self.loss_type)

    @property
    def estimates_kl(self) -> bool:
        return losses.needs_kl(self.loss_type)

    @property
    def uses_shift(self) -> bool:
        return losses.needs_shift(self.loss_type)

    @property
    def needs_whole_batch(self) -> bool:
        return losses.needs_whole_batch(self.loss_type)

    def loss_settings(self) -> dict[str, Any]:
        """Keyword arguments for the loss functions."""
        return {field.name: getattr(self, field.name) for field in fields(losses.LossSettings)}

    @property
    def uses_reference(self) -> bool:
        return losses.needs_reference(self.loss_type)


@dataclass(frozen=True)
class DPOConfig(PreferenceConfig):
    """Settings of offline DPO, read from ``algorithm.dpo.*``."""

    section = "algorithm.dpo"

    comparisons: str = setting(
        "all",
        "which answers of a ranked group make pairs. `all`: every two of different rank; `best`: the best against each "
        "worse one; `adjacent`: each against those of the next rank. Equal ranks make none.",
        choices=COMPARISONS,
    )
    gap_weight: bool = setting(
        False,
        "multiply a pair's loss by its gap of scores over the mean gap of its group's pairs, or of the file's where "
        "each row is a pair.",
    )
    yes_from_score: float | None = setting(
        None,
        "with losses of single answers: a group's answers with at least this score count as yes, the others as no; "
        "null refuses groups.",
    )
    reference: str = setting(
        "cached",
        "`cached`: every pair is scored once by the reference and kept on disk; `live`: scored at every step.",
        choices=("cached", "live"),
        expected="'cached' or 'live'",
    )
    reference_path: str | None = setting(
        None, "another model as reference, with `cached`; null for the initial policy, or the LoRA base."
    )
    reference_cache_dir: str | None = setting(
        None, "where scores are kept; null for `$VERL_AIOPS_CACHE/reference`, or `~/.cache/verl-aiops/reference`."
    )
    reference_verify_pairs: int = setting(
        4, "so many cached pairs are scored again at the start and compared; 0 for none.", within="[0, inf)"
    )
    preflight_rows: int = setting(
        2000, "rows of each file that are rendered and checked before Ray starts; 0 for none.", within="[0, inf)"
    )

    def check_together(self) -> None:
        super().check_together()
        self._check_examples()
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

    def _check_examples(self) -> None:
        """Refuse settings of examples that the losses do not take."""
        kinds = losses.kinds_of(self.loss_type)
        of_pairs = {"comparisons": self.comparisons != "all", "gap_weight": self.gap_weight}
        for name in (name for name, is_set in of_pairs.items() if is_set and "pair" not in kinds):
            raise ConfigError(
                f"algorithm.dpo.{name}={getattr(self, name)} is about pairs, and algorithm.dpo.loss_type="
                f"{self.loss_type} is no loss of pairs. Remove {name}."
            )
        if self.gap_weight and losses.needs_whole_batch(self.loss_type):
            raise ConfigError(
                f"algorithm.dpo.gap_weight=True weighs single pairs, and algorithm.dpo.loss_type={self.loss_type} "
                "sorts all pairs of a mini-batch together, where a weight has no meaning. Remove gap_weight."
            )
        if self.yes_from_score is not None and kinds != ("single",):
            raise ConfigError(
                f"algorithm.dpo.yes_from_score={self.yes_from_score} makes single answers of groups, which "
                f"algorithm.dpo.loss_type={self.loss_type} takes as {'lists' if 'list' in kinds else 'pairs'}. Remove "
                "it, or use losses of single answers alone."
            )


@dataclass(frozen=True)
class OnlineDPOConfig(PreferenceConfig):
    """Settings of online DPO, read from ``algorithm.online_dpo.*``."""

    section = "algorithm.online_dpo"

    rule: str = setting(
        "best_vs_worst",
        "which answers to a prompt make pairs. `best_vs_worst`: the pair with the largest gap; `all_pairs`: every real "
        "preference; `random_pair`: one of them; `best_vs_random`: the best answer against one at random; `self_play`: "
        "the data's own answer against the policy's (SPIN, arXiv 2401.01335).",
        choices=RULES,
    )
    min_gap: float = setting(0.0, "smallest difference of scores that makes a pair.", within="[0, inf)")
    members_agree: bool = setting(
        False,
        "with an ensemble of reward models (`reward.combined.members`): a pair that not every member orders alike is "
        "no preference, and is counted (`pairs/members_differ`).",
    )
    eos_penalty: float = setting(
        0.0, "taken from the score of an answer that did not end by itself.", within="[0, inf)"
    )
    importance_clip: float | None = setting(
        None,
        "weight of pairs that are no longer on-policy, at most this (truncated importance sampling, Ionides 2008); "
        "null for no weights.",
        within="[1, inf)",
    )
    max_failed_share: float = setting(
        0.1,
        "of answers without a finite score; above it the run ends.",
        within="[0, 1]",
        expected="a number, 0 or more and at most 1",
    )

    @classmethod
    def refused(cls, name: str, value: Any, wanted: str) -> ValueError:
        if name != "rule":
            return super().refused(name, value, wanted)
        hint = nearest(value, RULES)
        return ConfigError(f"{cls.section}.rule={value!r}: no such rule{hint}. Known: {', '.join(RULES)}.")

    def check_together(self) -> None:
        super().check_together()
        if losses.kinds_of(self.loss_type) != ("pair",):
            raise ConfigError(
                f"{self.section}.loss_type={self.loss_type}: online DPO makes pairs of the answers it samples. Use "
                "losses of pairs; the others are for offline DPO (algorithm.dpo)."
            )
        if self.score_margin and self.self_play:
            raise ConfigError(
                f"{self.section}.score_margin={self.score_margin} asks for the gap of two scores, but {self.section}."
                f"rule={SELF_PLAY} compares with the data's own answer, which has none. Remove score_margin."
            )
        if losses.needs_whole_batch(self.loss_type):
            raise ConfigError(
                f"{self.section}.loss_type={self.loss_type} sorts over a whole batch of pairs, but a step of online "
                "DPO has as many pairs as its answers make. Use another loss."
            )

    @property
    def self_play(self) -> bool:
        return self.rule == SELF_PLAY
