"""docs/configuration.md is what the code says, and names everything that can be set."""

import argparse
import importlib.util
import re
from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from verl_aiops.cli.main import COMMANDS, make_parser
from verl_aiops.rewards.investigation.settings import InvestigationSettings
from verl_aiops.rewards.model.combined import CombinedSettings
from verl_aiops.rewards.model.judge_settings import JudgeSettings
from verl_aiops.rewards.triage.settings import RewardSettings
from verl_aiops.rollout.rounds.settings import RoundSettings
from verl_aiops.rollout.tools.settings import ToolSettings
from verl_aiops.trainers.config import DPOConfig, OnlineDPOConfig
from verl_aiops.trainers.rl.config import RLConfig
from verl_aiops.trainers.rl.looks import LookSettings
from verl_aiops.trainers.rm.config import RewardModelConfig

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("write_config_reference", ROOT / "scripts" / "write_config_reference.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)
PAGE = script.PAGE.read_text(encoding="utf-8")
PRESETS = sorted(script.PRESETS.glob("*.yaml"))
SETTINGS = {
    "algorithm.dpo": DPOConfig,
    "algorithm.rm": RewardModelConfig,
    "algorithm.online_dpo": OnlineDPOConfig,
    "algorithm": RLConfig,
    "trainer.v1.sampler.sampler_kwargs": LookSettings,
    "actor_rollout_ref.rollout.custom.aiops_mturn": RoundSettings,
    "actor_rollout_ref.rollout.custom.aiops_tools": ToolSettings,
    "reward.custom_reward_function.reward_kwargs": RewardSettings,
    "reward_kwargs": InvestigationSettings,
    "custom_reward_function.reward_kwargs": JudgeSettings,
    "reward.combined": CombinedSettings,
}


def section(title):
    """The lines below a heading, up to the next of its rank or above."""
    rank = len(title) - len(title.lstrip("#"))
    _, _, rest = PAGE.partition(f"\n{title}\n")
    assert rest, title
    return re.split(rf"\n#{{2,{rank}}} ", rest)[0]


def rows(text):
    return [re.split(r"(?<!\\) \| ", line[2:-2]) for line in text.splitlines() if line.startswith("| `")]


def test_the_page_is_what_the_code_says(capsys):
    code = script.main(["--check"])
    assert code == 0, capsys.readouterr().err


def test_writing_makes_a_page_that_passes_the_check(tmp_path):
    page = tmp_path / "page.md"
    assert script.main(["--out", str(page)]) == 0
    assert script.main(["--out", str(page), "--check"]) == 0
    assert page.read_text(encoding="utf-8") == PAGE


def test_a_changed_default_fails_the_check(monkeypatch, capsys):
    monkeypatch.setattr(DPOConfig.__dataclass_fields__["beta"], "default", 0.25)
    assert script.main(["--check"]) == 1
    said = capsys.readouterr().err
    assert "docs/configuration.md, line " in said and "run python scripts/write_config_reference.py" in said
    assert re.search(r"page: \| `algorithm\.dpo\.beta` \| number \| `0\.1`", said)
    assert re.search(r"code: \| `algorithm\.dpo\.beta` \| number \| `0\.25`", said)


def test_a_missing_page_fails_the_check(tmp_path, capsys):
    assert script.main(["--check", "--out", str(tmp_path / "none.md")]) == 1
    assert "none.md, line 1: is not what the code says" in capsys.readouterr().err


@pytest.mark.parametrize("prefix, owner", SETTINGS.items())
def test_every_setting_has_its_row_with_default_and_meaning(prefix, owner):
    found = {row[0].strip("`"): row for row in rows(PAGE) if len(row) == 5}
    names = [field.name for field in fields(owner) if field.init and field.name != "parts"]
    assert [key for key in found if key.rpartition(".")[0] == prefix] == [f"{prefix}.{name}" for name in names]
    for field in fields(owner):
        if field.name in names:
            _, kind, default, expected, meaning = found[f"{prefix}.{field.name}"]
            assert default == f"`{script.yaml_text(field.default)}`"
            assert len(meaning) > 15, field.name
            # what any text will do for is a path; all else says what it wants
            assert expected or kind == "text, null", field.name


def test_allowed_values_are_those_of_the_checks():
    from verl_aiops.losses import LOSS_TYPES, PAIRING_RULES
    from verl_aiops.rewards.model.combined import MODES

    expected = {row[0].strip("`"): row[3] for row in rows(PAGE) if len(row) == 5}
    assert expected["algorithm.dpo.loss_type"].split(", ") == list(LOSS_TYPES)
    assert expected["algorithm.online_dpo.rule"].split(", ") == [*PAIRING_RULES, "self_play"]
    assert expected["reward.combined.mode"] == "one of " + ", ".join(MODES)
    assert expected["reward.custom_reward_function.reward_kwargs.length_budget"] == "an integer from 1 to 1000000"


def test_a_setting_without_a_description_is_an_error(monkeypatch):
    monkeypatch.setattr(RoundSettings.__dataclass_fields__["round_tokens"], "metadata", {})
    with pytest.raises(script.PageError, match="RoundSettings.round_tokens: not made by verl_aiops.settings.setting"):
        script.settings_table(RoundSettings, "x", RoundSettings.from_config)


@pytest.mark.parametrize("preset", [file.stem for file in PRESETS])
def test_what_the_page_says_of_a_preset_is_what_hydra_makes_of_it(preset):
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    folder = Path(importlib.util.find_spec("verl").submodule_search_locations[0]) / "trainer" / "config"
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base=None):
        config = compose("ppo_trainer", overrides=[f"+verl_aiops={preset}"])
    said = rows(section(f"### `+verl_aiops={preset}`"))
    assert said
    raw = OmegaConf.to_container(config, resolve=False)
    for key, value in ((key.strip("`"), value.strip("`")) for key, value in said):
        if key.endswith(".*"):
            prefix = key[:-2]
            values = OmegaConf.to_container(OmegaConf.select(config, prefix))
            defaults = {f.name: f.default for f in fields(SETTINGS[prefix]) if f.init}
            assert values == defaults, prefix
            continue
        here = raw
        for part in key.split("."):
            here = here[part]
        assert script.yaml_text(here) == value, key


def test_every_preset_command_and_option_is_in_the_page_and_in_its_contents():
    contents = PAGE.partition("\n## ")[0]
    for file in PRESETS:
        assert f"[`+verl_aiops={file.stem}`](#verl_aiops{file.stem})" in contents
    parsers = next(a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    assert set(parsers) == set(COMMANDS)
    for name, parser in parsers.items():
        assert f"[`verl-aiops {name}`](#verl-aiops-{name})" in contents
        said = section(f"### `verl-aiops {name}`")
        for action in parser._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or re.search(rf"`[^`]*{option}\b", said), option
        assert COMMANDS[name].examples.splitlines()[0] in said


def test_contents_link_to_headings_that_exist():
    headings = {script.anchor(line.lstrip("# ")) for line in PAGE.splitlines() if line.startswith("#")}
    links = re.findall(r"\(#([^)]+)\)", PAGE)
    assert len(links) > 20 and set(links) <= headings


def test_environment_variables_of_the_code_are_all_explained(monkeypatch):
    assert script.variables_read() >= {"VERL_AIOPS_CACHE", "VERL_USE_EXTERNAL_MODULES", "OPENAI_API_KEY", "RANK"}
    monkeypatch.delitem(script.ENVIRONMENT, "NO_COLOR")
    with pytest.raises(script.PageError, match=r"reads \['NO_COLOR'\]"):
        script.environment_table()


def test_the_settings_that_hf_follows_are_those_it_reads():
    from verl_aiops.rollout.hf.server import HFServer

    folder = ROOT / "verl_aiops" / "rollout" / "hf"
    read = {
        name: set(re.findall(r"(?<!model_)\bconfig\.(\w+)", (folder / name).read_text(encoding="utf-8")))
        for name in ("server.py", "scorer.py")
    }
    assert set(script.descriptions(HFServer, "Settings")) == read["server.py"]
    server = read["scorer.py"] - {"num_labels", "is_encoder_decoder", "get_text_config", "model_type"}
    assert all(f"`{name}`" in section("## The rollout `hf`") for name in server)
