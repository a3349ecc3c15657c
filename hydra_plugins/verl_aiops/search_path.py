"""Lets Hydra find the presets, so that ``+verl_aiops=dpo`` works with verl's own entry points, and stops a run of
verl's that asks for our trainers where nothing of ours would check and choose them."""

import re
import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

_WANTED = re.compile(r"\+*(algorithm\.adv_estimator|trainer\.v1\.trainer_mode)=['\"]?((online_)?dpo|rm)['\"]?$")


class VerlAiopsSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="verl-aiops", path="pkg://verl_aiops.config")
        search_path.append(provider="verl-aiops", path="verl-aiops-fields://")
        if reason := _why_unchecked():
            raise SystemExit(f"verl-aiops: error: {reason}")


def _why_unchecked() -> str | None:
    """Why `main_ppo`, running as the program, would start Ray and take our names for verl's."""
    main = sys.modules["__main__"]
    if getattr(getattr(main, "__spec__", None), "name", None) != "verl.trainer.main_ppo":
        return None
    wanted = next(filter(_WANTED.match, sys.argv[1:]), None)
    if wanted is None or hasattr(getattr(main, "validate_config", None), "checks_for_verl_aiops"):
        return None
    if "verl_aiops.plugin" not in sys.modules:
        return f"{wanted}: verl has not loaded the plug-in. `verl-aiops doctor` shows why"
    from verl_aiops.missing import MISSING, why_missing

    MISSING.setdefault("check before Ray", "verl.trainer.main_ppo has no validate_config of verl.utils.config")
    return f"{wanted}: {why_missing('check before Ray')}"
