"""Lets Hydra find the presets, so that ``+verl_aiops=dpo`` works with verl's own entry points."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class VerlAiopsSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="verl-aiops", path="pkg://verl_aiops.config")
