"""The scripts in examples/: whatever the paths are, Hydra reads what was meant."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# scripts that end in verl's main_ppo or SFT trainer
HYDRA = sorted(path.name for path in EXAMPLES.glob("run_*.sh") if "_trl_" not in path.name)
NASTY = "数据 a=b,(c)'d\"e&~f{g}[h]$i#j:k\\l%m;n!o`p*q?"
PLACES = {
    "MODEL": ("actor_rollout_ref.model.path", "model.path"),
    "RM": ("reward.reward_model.model_path",),
    "TRAIN": ("data.train_files",),
    "VAL": ("data.val_files",),
    "OUT": ("trainer.default_local_dir",),
}

WRITE = f"#!{sys.executable}\nimport json, os, sys\njson.dump(sys.argv[1:], open(os.environ['SEEN'], 'w'))\n"


@pytest.fixture
def overrides(tmp_path):
    """Runs a script with commands that only write down how they were called; the overrides as Hydra reads them."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("python3", "torchrun"):
        (programs / name).write_text(WRITE)
        (programs / name).chmod(0o755)

    def run(script, **variables):
        seen = tmp_path / "seen.json"
        kept = {name: value for name, value in os.environ.items() if name not in ("OUT", "MODEL", "TRAIN", "VAL", "RM")}
        env = kept | {"PATH": f"{programs}:{os.environ['PATH']}", "SEEN": str(seen)} | variables
        # torchrun's model is not there to be copied, so run_sft.sh fails after it
        subprocess.run(["bash", str(EXAMPLES / script)], env=env, cwd=tmp_path, timeout=60, capture_output=True)
        words = [word for word in json.loads(seen.read_text()) if "=" in word and not word.startswith("--")]
        config = OmegaConf.create()
        for override in OverridesParser.create().parse_overrides(words):
            OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
        return config

    return run


@pytest.mark.parametrize("script", HYDRA)
def test_any_path_reaches_hydra_as_it_is(script, overrides, tmp_path):
    folder = tmp_path / NASTY
    folder.mkdir()
    variables = {name: str(folder / name) for name in PLACES}
    config = overrides(script, **variables)
    for name, keys in PLACES.items():
        found = [OmegaConf.select(config, key) for key in keys]
        if name == "RM" and "_rm" not in script:
            continue
        assert variables[name] in found, name
    if "grpo" in script or "ppo_" in script or "online" in script:
        assert config.trainer.rollout_data_dir == f"{variables['OUT']}/rollouts"


@pytest.mark.parametrize("script", ["run_dpo.sh", "run_dpo_cpu.sh", "run_grpo_mturn_cpu.sh", "run_sft.sh"])
def test_lists_of_files_and_the_home_folder(script, overrides, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    config = overrides(
        script,
        HOME=str(home),
        MODEL="org/model",
        TRAIN="[数据/a.parquet, ~/b (1).parquet]",
        VAL="['c,d.parquet',e.parquet]",
        OUT="~/runs",
    )
    assert list(config.data.train_files) == ["数据/a.parquet", f"{home}/b (1).parquet"]
    assert list(config.data.val_files) == ["c,d.parquet", "e.parquet"]
    assert config.trainer.default_local_dir == f"{home}/runs"
    assert not (tmp_path / "~").exists()


def test_a_file_that_looks_like_a_list_is_a_file(overrides, tmp_path):
    (tmp_path / "[a,b]").touch()
    config = overrides("run_dpo.sh", MODEL="m", TRAIN="[a,b]", VAL="null", OUT="[o]")
    assert config.data.train_files == "[a,b]" and config.data.val_files is None
    assert config.trainer.default_local_dir == "[o]" and config.actor_rollout_ref.model.path == "m"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.text(st.sampled_from("ab/.-_01 \\'\"${}[](),:=~&#%@!?*;<>|^`字é"), min_size=1, max_size=12)
        | st.sampled_from(["null", "true", "1e3", "0x1", "${x}", "\\${x}", "\\\\", "inf", "end\\", "-1"]),
        min_size=1,
        max_size=30,
    )
)
def test_every_text_is_read_back(texts):
    """Against Hydra's parser and OmegaConf's interpolations; one shell for many texts."""
    texts = [text for text in texts if not text.startswith("~")]
    code = '. "$0"; for value in "$@"; do text "$value"; printf "\\0"; done'
    done = subprocess.run(
        ["bash", "-euc", code, str(EXAMPLES / "hydra_values.sh"), *texts], capture_output=True, check=True
    )
    quoted = done.stdout.decode().split("\0")[:-1]
    assert len(quoted) == len(texts)
    for text, value in zip(texts, quoted):
        read = OverridesParser.create().parse_override(f"key={value}").value()
        assert OmegaConf.create({"key": read, "x": "interpolated"}).key == text


def test_the_scripts_are_whole_bash():
    assert shutil.which("bash")
    for script in EXAMPLES.glob("*.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_no_script_hands_a_path_to_hydra_bare():
    for script in EXAMPLES.glob("*.sh"):
        for line in script.read_text(encoding="utf-8").splitlines():
            bare = [f'="${name}' for name in PLACES if f'="${name}' in line]
            assert not bare or "bash" in line or line.startswith(("MODEL=", "#")), f"{script.name}: {line}"


@pytest.mark.parametrize("script, device", [("train_rm.sh", "cuda"), ("train_rm_cpu.sh", "cpu")])
def test_later_options_win_in_both_scripts_that_train_a_reward_model(script, device, tmp_path):
    import argparse

    from verl_aiops.cli.train import reward_model_options

    (tmp_path / "verl-aiops").write_text(WRITE)
    (tmp_path / "verl-aiops").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SEEN": str(tmp_path / "seen.json")}
    env |= {"MODEL": "m o", "DATA": "d", "VAL": "v", "OUT": "o"}
    subprocess.run(["bash", str(EXAMPLES / script), "--lr", "3e-4"], env=env, check=True, timeout=60)
    command, *words = json.loads((tmp_path / "seen.json").read_text())
    parser = argparse.ArgumentParser()
    reward_model_options(parser)
    args = parser.parse_args(words)
    assert (command, args.model, args.lr, args.device) == ("train-rm", "m o", 3e-4, device)
    small = device == "cpu"
    assert (args.batch_size, args.max_length, args.save_steps) == ((2, 1024, 25) if small else (8, 2048, 50))
    assert (args.epochs, args.grad_accum, args.lora_rank, args.lora_alpha, args.seed) == (1, 4, 16, 32, 1)
    assert (args.center, args.dtype) == (0.01, "float32")
