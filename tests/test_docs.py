"""What the README says of settings and files is what the code has."""

import re
from dataclasses import fields
from pathlib import Path

from verl_aiops.losses import F_DIVERGENCES, LOSS_TYPES
from verl_aiops.trainers.config import DPOConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| `([^`]*)` \| (.*) \|$", README, flags=re.MULTILINE)


def test_every_setting_stands_in_the_readme_with_its_default():
    as_yaml = {None: "null", True: "true", False: "false"}
    defaults = {f.name: f.default for f in fields(DPOConfig)}
    said = {name: default for name, default, _ in ROWS}
    assert list(said) == list(defaults)
    for name, default in defaults.items():
        expected = as_yaml[default] if default is None or isinstance(default, bool) else str(default)
        assert said[name] == expected, name


def test_every_loss_and_divergence_stands_in_the_readme():
    meanings = {name: meaning for name, _, meaning in ROWS}
    for name in LOSS_TYPES:
        assert f"`{name}`" in meanings["loss_type"], name
    for name in F_DIVERGENCES:
        assert f"`{name}`" in meanings["f_divergence_type"], name


def test_files_that_the_readme_names_exist():
    for path in re.findall(r"\b(?:examples|scripts)/[\w./-]+\.(?:sh|py)\b", README):
        assert (ROOT / path).is_file(), path
