"""A setting is one field: check, message, section, option, reference row and a loss's keyword follow from it."""

import argparse
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from verl_aiops.settings import Settings, add_options, expected, fits, from_options, setting

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("write_config_reference", ROOT / "scripts" / "write_config_reference.py")
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)


@dataclass(frozen=True)
class Oven(Settings):
    section = "kitchen.oven"

    dish: str = setting(MISSING, "what is baked", group="what", metavar="DISH")
    guests: tuple[str, ...] = setting((), "who eats", group="what")
    heat: float = setting(180.0, "in degrees", within="(0, 300]", group="how")
    turns: int = setting(1, "of the tin", within="[0, inf)", group="how")
    fan: bool = setting(False, "let the air go round", group="how")
    rack: str = setting("middle", "where it stands", choices=("low", "middle", "top"), group="how")
    rest: float | None = setting(None, "minutes before it is cut; null for none", within="[0, inf)", group="how")


def oven(**given):
    return Oven.from_config(OmegaConf.create({"kitchen": {"oven": {"dish": "bread", "heat": 220} | given}}))


def test_a_section_is_read_from_the_whole_configuration():
    assert oven(rest="${kitchen.oven.heat}", fan=True) == Oven(dish="bread", heat=220, rest=220, fan=True)
    assert Oven.from_section({"dish": "pie"}) == Oven.from_config({"dish": "pie"}) == Oven("pie")
    with pytest.raises(ValueError, match=r"kitchen\.oven=3: expected a section of settings"):
        Oven.from_config(OmegaConf.create({"kitchen": {"oven": 3}}))


@pytest.mark.parametrize(
    "given, said",
    [
        ({"heet": 200}, "kitchen.oven.heet: no such setting, did you mean heat?"),
        ({"zzzz": 200}, "kitchen.oven.zzzz: no such setting; known: dish, guests, heat, turns, fan, rack, rest"),
        ({"heat": 0}, "kitchen.oven.heat=0: expected a number above 0 and at most 300"),
        ({"heat": math.nan}, "heat=nan: expected a number"),
        ({"heat": 301}, "heat=301: expected a number"),
        ({"heat": True}, "heat=True: expected a number"),
        ({"heat": "hot"}, "heat=hot: expected a number"),
        ({"heat": None}, "heat=None: expected a number"),
        ({"turns": 1.5}, "turns=1.5: expected a whole number, 0 or more"),
        ({"turns": -1}, "turns=-1: expected a whole number, 0 or more"),
        ({"fan": 1}, "fan=1: expected true or false"),
        ({"rack": "attic"}, "rack=attic: expected one of low, middle, top"),
        ({"rest": -1}, "rest=-1: expected a number, 0 or more, or null"),
        ({"dish": 4}, "dish=4: expected a text"),
    ],
)
def test_what_a_field_does_not_allow_is_refused_by_its_name(given, said):
    with pytest.raises(ValueError) as error:
        oven(**given)
    assert said in str(error.value)


@pytest.mark.parametrize("name, value", [("heat", 300), ("heat", 1e-9), ("turns", 0), ("rest", None), ("rest", 0)])
def test_the_ends_of_a_range(name, value):
    assert getattr(oven(**{name: value}), name) == value


@pytest.mark.parametrize(
    "kind, within, words, inside, outside",
    [
        ("float", "(-inf, inf)", "a number", (-1e300, 0), (math.inf, "1")),
        ("float", "(0, inf)", "a number above 0", (1e-300,), (0, -1)),
        ("float", "[0, 1)", "a number, 0 or more and less than 1", (0, 0.999), (1, -1e-9)),
        ("int", "(0, inf)", "a number above 0, whole", (1,), (0, 1.0)),
        ("int", "[4, 200]", "an integer from 4 to 200", (4, 200), (3, 201, True)),
    ],
)
def test_ranges_and_their_words(kind, within, words, inside, outside):
    of = setting(1, "a number of something", within=within)
    of.type = kind
    assert expected(of) == words
    assert all(fits(of, value) for value in inside) and not any(fits(of, value) for value in outside)


def test_options_of_a_command():
    parser = argparse.ArgumentParser()
    assert list(add_options(parser, Oven)) == ["what", "how"]
    assert from_options(Oven, parser.parse_args(["--dish", "pie"])) == Oven("pie")
    line = "--dish pie --guests a b --heat 200 --turns 2 --fan --rack top --rest 5"
    assert from_options(Oven, parser.parse_args(line.split()), turns=3) == Oven(
        "pie", ("a", "b"), 200.0, 3, True, "top", 5.0
    )
    told = " ".join(parser.format_help().split())
    assert "--heat X in degrees (default 180.0)" in told and "--rest X minutes before it is cut; null for none" in told
    assert "--rack {low,middle,top} where it stands (default middle)" in told
    with pytest.raises(SystemExit):
        parser.parse_args([])


def test_rows_of_the_reference():
    rows = reference.settings_table(Oven, "kitchen.oven", lambda given: oven(**given), skip=("dish", "guests"))
    assert "| `kitchen.oven.heat` | number | `180.0` | a number above 0 and at most 300 | in degrees |" in rows
    assert "| `kitchen.oven.rack` | text | `middle` | one of low, middle, top | where it stands |" in rows


# --- a setting of the losses ------------------------------------------------------------------------------------------

NEW_FIELD = '    squeeze: float = knob(1.0, "> 0", "factor of the margin of `hinge`, for a test.", ("hinge",))\n'
ASKED = """
import inspect, json, sys
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from verl_aiops.losses import compute_dpo_loss, compute_online_dpo_loss, validate_loss_args
from verl_aiops.trainers.config import DPOConfig, OnlineDPOConfig

def refused(call, *args, **given):
    try:
        call(*args, **given)
    except (TypeError, ValueError) as error:
        return str(error)

sys.path.insert(0, "scripts")
import write_config_reference as reference
logps = [torch.tensor([-1.0]), torch.tensor([-1.5]), torch.zeros(1), torch.zeros(1)]
with initialize_config_module("verl.trainer.config", version_base=None):
    dpo, online = (
        compose(
            "ppo_trainer",
            overrides=[f"+verl_aiops={name}", f"algorithm.{name}.squeeze=3", f"algorithm.{name}.loss_type=hinge"],
        )
        for name in ("dpo", "online_dpo")
    )
hinge = {"beta": 1.0, "loss_type": "hinge"}
short = reference.short_table(DPOConfig, open("docs/dpo.md").read()).splitlines()
print(json.dumps({
    "losses": [float(compute_dpo_loss(*logps, **hinge, **more)[0]) for more in ({}, {"squeeze": 2.0})],
    "signatures": [inspect.signature(f).parameters["squeeze"].default
                   for f in (compute_dpo_loss, compute_online_dpo_loss, validate_loss_args)],
    "refused": [refused(validate_loss_args, squeeze=0, loss_type="hinge"), refused(validate_loss_args, squeeze=2.0),
                refused(DPOConfig.from_config, {"squeeze": -1, "loss_type": "hinge"}),
                refused(DPOConfig.from_config, {"squeese": 2, "loss_type": "hinge"}),
                refused(compute_dpo_loss, *logps, squeese=2)],
    "trainer": [owner.from_config(config).loss_settings()["squeeze"]
                for owner, config in ((DPOConfig, dpo), (OnlineDPOConfig, online))],
    "row": [line for line in reference.section_table(OnlineDPOConfig) if "squeeze" in line],
    "short": [line for line in short if "squeeze" in line],
}))
"""


def test_a_new_setting_of_the_losses_is_a_field_and_its_use(tmp_path):
    """In a copy of the code, two files are changed by a line each; everything else must know the setting by itself."""
    for folder in ("verl_aiops", "hydra_plugins", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "dpo.md", tmp_path / "docs")
    changes = {
        "settings.py": (r"(?m)^    simpo_gamma: float = knob\(", NEW_FIELD + "    simpo_gamma: float = knob("),
        "formulas.py": (r"relu\(1\.0 - k\.beta \* p\.margin\(k\)\)", "relu(1.0 - k.squeeze * k.beta * p.margin(k))"),
    }
    for name, (old, new) in changes.items():
        file = tmp_path / "verl_aiops" / "losses" / name
        text, count = re.subn(old, new, file.read_text(encoding="utf-8"))
        assert count == 1, name
        file.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{ASKED}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["losses"] == [0.5, 0.0] and told["signatures"] == [1.0] * 3 and told["trainer"] == [3, 3]
    assert told["refused"] == [
        "squeeze must be > 0, got 0",
        "squeeze=2.0 has no effect on loss_type ['sigmoid']; it is for hinge",
        "algorithm.dpo: squeeze must be > 0, got -1",
        told["refused"][3],
        "unexpected keyword argument 'squeese'; did you mean 'squeeze'?",
    ]
    assert told["refused"][3].startswith(
        "algorithm.dpo.squeese: no such setting (did you mean 'squeeze'?). Known: beta,"
    )
    meaning = "factor of the margin of `hinge`, for a test"
    assert told["row"] == [f"| `algorithm.online_dpo.squeeze` | number | `1.0` | > 0 | {meaning}. |"]
    assert told["short"] == [f"| `squeeze` | `1.0` | {meaning} |"]


def test_no_setting_of_the_losses_is_spelt_again():
    """Where one stands beside its field, its use and what is said of it: nowhere in the code."""
    from verl_aiops.losses import LossSettings

    own = [field.name for field in fields(LossSettings) if field.metadata["losses"]]
    assert len(own) == 4
    files = [*(ROOT / "verl_aiops").rglob("*.py"), *(ROOT / "verl_aiops").rglob("*.yaml")]
    for name in own:
        found = {file.name for file in files if re.search(rf"\b{name}\b", file.read_text(encoding="utf-8"))}
        assert found == {"settings.py", "formulas.py"}, name
