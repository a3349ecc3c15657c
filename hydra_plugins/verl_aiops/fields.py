"""Lets presets take a section of our settings from its fields: ``fields@_global_.algorithm.dpo: dpo``.

A run's configuration must hold every key of a section, or Hydra asks for a ``+`` before those that it lacks. Here they
come from the dataclass that checks them, so that no preset spells them again. A module is imported when a preset asks
for its section; other programs of Hydra's load this file alone.
"""

from importlib import import_module

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

GROUP = "verl_aiops/fields"
SECTIONS = {
    "dpo": "verl_aiops.trainers.config:DPOConfig",
    "rm": "verl_aiops.trainers.rm.config:RewardModelConfig",
    "online_dpo": "verl_aiops.trainers.config:OnlineDPOConfig",
    "pair_files": "verl_aiops.trainers.data_settings:PairFiles",
    "combined": "verl_aiops.rewards.model.combined:CombinedSettings",
    "rounds": "verl_aiops.rollout.rounds.settings:RoundSettings",
    "tools": "verl_aiops.rollout.tools.settings:ToolSettings",
}


class SettingsFields(ConfigSource):
    @staticmethod
    def scheme() -> str:
        return "verl-aiops-fields"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.rstrip("/") == GROUP

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.removesuffix(".yaml").rpartition("/")
        return group == GROUP and name in SECTIONS

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return sorted(SECTIONS) if self.is_group(config_path) and results_filter != ObjectType.GROUP else []

    def load_config(self, config_path: str) -> ConfigResult:
        if not self.is_config(config_path):
            raise ConfigLoadError(f"Config not found : {config_path}")
        module, _, owner = SECTIONS[config_path.removesuffix(".yaml").rpartition("/")[2]].partition(":")
        from verl_aiops.settings import settings_of

        section = {of.name: of.default for of in settings_of(getattr(import_module(module), owner))}
        return ConfigResult(self.provider, self.full_path(), OmegaConf.create(section), header={"package": None})
