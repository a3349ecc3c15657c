"""Recipes of `learning.py`: a YAML file of stages and their settings, read, completed and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["RECIPES", "read_recipe"]

RECIPES = Path(__file__).with_name("recipes")

_TRAINED = {"kind": None, "from": "base", "epochs": 1, "steps": None, "lr": None, "batch": 16, "micro-batch": None}
_TRAINED |= {"warmup": 0.1, "schedule": "cosine", "overrides": []}
_PREFERENCE = {"beta": 0.1, "loss": ["sigmoid", "sft"], "loss-weights": [1.0, 0.2]}
_ROLLOUT = {"n": 8, "temperature": 1.0, "rollout": "hf", "save-every": 0, "prompts": "ask"}
# Settings of a stage by its kind, with their defaults; None without a word below has to be given.
STAGES: dict[str, dict[str, Any]] = {
    # trainer: `ours` is DPO's with the loss sft, `verl` is verl's SFT trainer by examples/run_sft.sh; prompts: `train`,
    # `ask`, or `asked`, the incidents simulated for that alone
    "sft": {**_TRAINED, "trainer": "ours", "prompts": "train"},
    # sampled answers of a stage's model to training prompts: `limit` of them, asked by `shards` processes
    "answers": {"kind": None, "of": None, "n": 8, "temperature": 0.8, "limit": None, "shards": 1, "prompts": "ask"},
    # a stage's model asked for its verdict after the reference analysis instead of its own
    "reference": {"kind": None, "of": None},
    "dpo": {**_TRAINED, **_PREFERENCE, "answers": None, "form": "pairs", "pairs-per-incident": 2, "comparisons": "all"},
    "online_dpo": {**_TRAINED, **_PREFERENCE, **_ROLLOUT, "min-gap": 0.1},
    "grpo": {**_TRAINED, **_ROLLOUT, "kl": 0.0},
}
_OPTIONAL = {"steps", "micro-batch", "limit"}
_DATA = {"simulate": None, "build": {}, "folds": None, "views": [], "rename": 0, "shuffle": 0, "asked": {}}
# What models are asked while training, where it is not what SFT has seen: other `prompts` of the incidents of `parts`
_ASKED = {"prompts": {}, "rename": 0, "parts": ["real", "simulated"], "simulate": None}
_RECIPE = {"seeds": [0], "sides": ["val"], "data": {}, "ask": {}, "base": False, "stages": {}}
_ASK = {"round-tokens": "120,40", "concurrency": 64, "limit": None}


def read_recipe(
    name: str,
    changes: Iterable[str] = (),
    *,
    folder: Path = RECIPES,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """A recipe by its name in `folder` or the path of its file, with ``KEY.KEY=VALUE`` put in, and all defaults.

    Args:
        sections: what else a recipe has at its top, with the defaults of each.

    Raises:
        SystemExit: no such recipe, setting or stage; what is known is said.
    """
    sections = sections or {}
    path = Path(name) if Path(name).suffix else folder / f"{name}.yaml"
    if not path.is_file():
        raise SystemExit(
            f"{name}: no such recipe; there are {', '.join(sorted(p.stem for p in folder.glob('*.yaml')))}"
        )
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    for change in changes:
        key, equals, value = change.partition("=")
        *parents, last = key.split(".")
        at = given
        for parent in parents:
            at = at.setdefault(parent, {}) if isinstance(at, dict) else None
        if not equals or not isinstance(at, dict):
            raise SystemExit(f"--set {change}: expected KEY.KEY=VALUE, such as stages.sft.epochs=1")
        at[last] = yaml.safe_load(value)
    recipe = _filled({**_RECIPE, **sections}, given, name)
    for section, defaults in sections.items():
        recipe[section] = _filled(defaults, recipe[section], f"{name}: {section}")
    recipe["data"] = _filled(_DATA, recipe["data"], f"{name}: data")
    recipe["data"]["asked"] = _filled(_ASKED, recipe["data"]["asked"], f"{name}: data.asked")
    recipe["ask"] = _filled(_ASK, recipe["ask"], f"{name}: ask")
    recipe["stages"] = {
        stage: _stage(f"{name}: stages.{stage}", settings) for stage, settings in recipe["stages"].items() if settings
    }
    _check_order(name, recipe["stages"])
    return recipe


def _stage(where: str, given: Mapping[str, Any]) -> dict[str, Any]:
    kind = given.get("kind")
    if kind not in STAGES:
        raise SystemExit(f"{where}.kind: expected one of {', '.join(STAGES)}, found {kind!r}")
    stage = _filled(STAGES[kind], given, where)
    missing = [key for key, value in stage.items() if value is None and key not in _OPTIONAL]
    if missing:
        raise SystemExit(f"{where}: {missing[0]} has to be given")
    return stage


def _filled(defaults: Mapping[str, Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    unknown = [key for key in given if key not in defaults]
    if unknown:
        raise SystemExit(f"{where}: {unknown[0]!r} is no setting; known are {', '.join(defaults)}")
    return {**defaults, **given}


def _check_order(name: str, stages: Mapping[str, Mapping[str, Any]]) -> None:
    """A stage takes models and answers of stages above it alone."""
    models, answers = {"base"}, set()
    for stage, settings in stages.items():
        wanted = (("from", models), ("of", models), ("answers", answers))
        for key, known in wanted:
            if key in settings and settings[key] not in known:
                there = ", ".join(sorted(known)) or "none"
                raise SystemExit(
                    f"{name}: stages.{stage}.{key}: expected a stage above it ({there}), found {settings[key]!r}"
                )
        if settings["kind"] != "reference":
            (answers if settings["kind"] == "answers" else models).add(stage)
