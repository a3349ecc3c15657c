"""Whether what a run reports to is there, before it has cost anything."""

from __future__ import annotations

import configparser
import importlib.util
import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["tracker_faults"]

# verl's names of trackers, and the packages that they import
_PACKAGES = {
    "wandb": "wandb",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "vemlp_wandb": "volcengine_ml_platform",
    "tensorboard": "tensorboard",
    "clearml": "clearml",
    "trackio": "trackio",
    "rl_insight": "rl_insight",
}
_WANDB_HOST = "https://api.wandb.ai"


def tracker_faults(names: Sequence[str]) -> list[str]:
    """What keeps `trainer.logger` from working: packages that are missing, and Weights & Biases without a key.

    Where there is no key, the latter asks for one, which a worker of Ray's has no terminal for.
    """
    faults = [
        f"trainer.logger has {name}, which is not installed here: pip install {package}, or leave it away."
        for name, package in _PACKAGES.items()
        if name in names and importlib.util.find_spec(package) is None
    ]
    if "wandb" in names and not faults and not _wandb_has_key():
        faults.append(
            "trainer.logger has wandb, and there is no key for it: run `wandb login`, set WANDB_API_KEY, or set "
            "WANDB_MODE=offline and `wandb sync` the folder later."
        )
    return faults


def _wandb_has_key() -> bool:
    """By its documentation: a key in the environment or for its host in netrc, or a mode that needs none."""
    settings = _wandb_settings()
    mode = os.environ.get("WANDB_MODE") or settings.get("mode") or "online"
    if mode in ("offline", "disabled", "dryrun"):
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.get("api_key"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or _WANDB_HOST).hostname or ""
    named = os.environ.get("NETRC")
    files = [named] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in files:
        try:
            if netrc.netrc(os.path.expanduser(file)).hosts.get(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _wandb_settings() -> dict[str, str]:
    """The section ``default`` of its settings files, of which the working directory's goes before."""
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    files = [folder / "settings", Path("wandb") / "settings"]
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(files, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}
