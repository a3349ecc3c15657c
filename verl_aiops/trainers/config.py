"""Settings of the trainers of preferences, under ``algorithm.dpo`` and ``algorithm.online_dpo``: one field each, and
what must not be together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from verl_aiops import losses
from verl_aiops.settings import Settings, nearest, setting
from verl_aiops.trainers.shared_settings import CHECK_SPACE, LOGPROB_BACKEND, PREFLIGHT_ROWS

if TYPE_CHECKING:
    from verl_aiops.trainers.rm.config import RewardModelConfig

__all__ = [
    "PREFERENCE_MODEL_TYPE",
    "REWARD_MODEL_TYPE",
    "SELF_PLAY",
    "SHARED_POLICY",
    "SHARED_VALUE",
    "ConfigError",
    "DPOConfig",
    "OnlineDPOConfig",
    "nearest",
    "refuse_of_pairs",
    "refuse_yes_from_score",
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


def refuse_of_pairs(settings: PreferenceConfig | RewardModelConfig, named: Mapping[str, bool]) -> None:
    """Refuse settings of pairs, of which ``named`` says whether they are set, where no loss is of pairs."""
    for name in (name for name, is_set in named.items() if is_set and "pair" not in settings.kinds):
        raise ConfigError(
            f"{settings.section}.{name}={getattr(settings, name)} is about pairs, and {settings.section}.loss_type="
            f"{settings.loss_type} is no loss of pairs. Remove {name}."
        )


def refuse_yes_from_score(settings: DPOConfig | RewardModelConfig, of_single_answers: str) -> None:
    """Refuse ``yes_from_score`` where groups are taken as another kind of example."""
    if settings.yes_from_score is not None and settings.kinds != ("single",):
        raise ConfigError(
            f"{settings.section}.yes_from_score={settings.yes_from_score} makes single answers of groups, which "
            f"{settings.section}.loss_type={settings.loss_type} takes as "
            f"{'lists' if 'list' in settings.kinds else 'pairs'}. Remove it, or use {of_single_answers}."
        )


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
    logprob_backend: str = LOGPROB_BACKEND()
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
    check_space: bool = CHECK_SPACE()

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
    preflight_rows: int = PREFLIGHT_ROWS()

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
        refuse_of_pairs(self, {"comparisons": self.comparisons != "all", "gap_weight": self.gap_weight})
        if self.gap_weight and losses.needs_whole_batch(self.loss_type):
            raise ConfigError(
                f"algorithm.dpo.gap_weight=True weighs single pairs, and algorithm.dpo.loss_type={self.loss_type} "
                "sorts all pairs of a mini-batch together, where a weight has no meaning. Remove gap_weight."
            )
        refuse_yes_from_score(self, "losses of single answers alone")


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
