"""docs/extending.md, run as it stands: its files, its commands, and what it says that they print."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


class Block(NamedTuple):
    marker: str
    language: str
    text: str
    expected: str | None


def blocks(*markers):
    """Fenced blocks behind a comment that begins with one of ``markers``, with the ```text block that follows."""
    fenced = r"<!-- (.*?) -->\n```(\w+)\n(.*?)```\n(?:```text\n(.*?)```\n)?"
    found = [Block(*groups) for groups in re.findall(fenced, PAGE, flags=re.DOTALL)]
    return [block for block in found if block.marker.startswith(markers)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the page, blocks of one name put together."""
    folder = tmp_path_factory.mktemp("extending")
    for block in blocks("file "):
        with (folder / block.marker.removeprefix("file ")).open("a", encoding="utf-8") as file:
            file.write(block.text + "\n\n")
    return folder


@pytest.fixture(scope="module")
def shell(folder):
    """Function (command, check=True): runs it in the folder behind the page's own setup; stdout and stderr in one."""
    (setup,) = blocks("setup")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(command, timeout=120, **more):
        done = subprocess.run(
            ["bash", "-c", f"{setup.text}\n{command}"],
            cwd=folder,
            env={**environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return done.returncode, done.stdout

    return run


def python(shell, code):
    status, output = shell(f"python - <<'END'\n{code}\nEND")
    assert status == 0, output
    return output


def test_the_page_has_an_example_of_each():
    text = "".join(block.text for block in blocks("file my_triage.py"))
    lines = ('LOSSES["cpo"]', 'PARTS["named"]', 'METRICS["long"]', 'READERS[".yaml"]', 'PAIRING_RULES["two_widest"]')
    for line in (*lines, "FAULTS.update"):
        assert line in text
    assert len(blocks("run")) == 7 and len(blocks("train")) == 1 and len(blocks("job")) == 1


@pytest.mark.parametrize("block", [b for b in blocks("run") if b.language == "python"], ids=lambda b: b.text[-40:-20])
def test_python_blocks_print_what_the_page_says(shell, block):
    assert block.expected
    assert python(shell, block.text) == block.expected


def test_commands_print_what_the_page_says(shell):
    text = "".join(b.text for b in blocks("run") if b.language == "console")
    commands = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, flags=re.MULTILINE)
    assert len(commands) == 8
    for command, expected in commands:
        assert shell(command)[1] == expected, command


def test_the_new_loss_has_the_value_and_gradient_of_its_formula(shell):
    output = python(
        shell,
        "import my_triage, torch\n"
        "from verl_aiops.losses import compute_dpo_loss\n"
        "w, l = torch.tensor([-10.0], requires_grad=True), torch.tensor([-12.0], requires_grad=True)\n"
        "loss = compute_dpo_loss(w, l, loss_type='cpo', beta=0.1)[0].sum()\n"
        "loss.backward()\n"
        "print(loss.item(), w.grad.item(), l.grad.item())",
    )
    loss, on_chosen, on_rejected = map(float, output.split())
    assert loss == pytest.approx(math.log1p(math.exp(-0.2)), rel=1e-6)
    slope = 0.1 / (1 + math.exp(0.2))
    assert (on_chosen, on_rejected) == (pytest.approx(-slope, rel=1e-5), pytest.approx(slope, rel=1e-5))


def test_verl_itself_brings_the_module_into_a_process(shell):
    output = python(
        shell,
        "import verl\n"
        "from verl_aiops.losses import LOSSES, PAIRING_RULES\n"
        "from verl_aiops.rewards.triage.components import PARTS\n"
        "print('cpo' in LOSSES, 'two_widest' in PAIRING_RULES, 'named' in PARTS)",
    )
    assert output.splitlines()[-1] == "True True True"


def test_the_check_before_a_run_and_the_reward_manager_know_the_new_part(shell):
    output = python(
        shell,
        "import verl\n"
        "from omegaconf import OmegaConf\n"
        "from verl_aiops.rewards.managers.triage import AiopsMturnRewardManager\n"
        "from verl_aiops.trainers.triage.checks import ConfigError, check_reward_settings\n"
        "def config(**kwargs):\n"
        "    reward = {'custom_reward_function': {'path': None, 'reward_kwargs': kwargs}}\n"
        "    return OmegaConf.create({'reward': {**reward, 'reward_manager': {'name': 'aiops_mturn'}}})\n"
        "check_reward_settings(config(named_weight=0.03))\n"
        "try:\n"
        "    check_reward_settings(config(named_weight=0.2))\n"
        "except ConfigError as error:\n"
        "    print('refused:', 'named_weight' in str(error))\n"
        "score = AiopsMturnRewardManager._reward(config(named_weight=0.03), None)\n"
        'answer = \'{"service": "a", "incident_type": "b"}\'\n'
        "extra = {'turns': ['it is a', answer], 'incident_text': 'x'}\n"
        "print(score('aiops_mturn', '', {'service': 'a', 'incident_type': 'b'}, extra)['score'])",
    )
    refused, score = output.splitlines()[-2:]
    assert refused == "refused: True"
    assert float(score) == pytest.approx((0.85 + 0.03) / 1.03)


def test_pairs_are_made_of_what_the_new_reader_read(shell, folder):
    status, output = shell("verl-aiops build-prefs --incidents tickets.yaml --out all.jsonl --val-share 0")
    assert status == 0, output
    rows = [json.loads(line) for line in (folder / "all.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["id"].partition("#")[0] for row in rows} == {"T-101", "T-102", "T-103"}
    assert {row["data_source"] if "data_source" in row else row["source"] for row in rows} == {"tickets"}


def test_without_the_variable_the_format_is_unknown(shell):
    command = "unset VERL_USE_EXTERNAL_MODULES; verl-aiops build-prefs --incidents tickets.yaml --out none.jsonl"
    status, output = shell(command)
    assert status == 2 and "no reader for '.yaml'" in output


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("nowhere_to_be_found", None, "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("broken_module", "raise RuntimeError('on purpose')", "RuntimeError: on purpose"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_clear_error(shell, folder, name, content, said):
    if content is not None:
        (folder / f"{name}.py").write_text(content)
    status, output = shell(f"export VERL_USE_EXTERNAL_MODULES=my_triage,{name}; verl-aiops import --list")
    assert status == 2
    assert output.startswith(
        f"verl-aiops: error: VERL_USE_EXTERNAL_MODULES=my_triage,{name}: {name} cannot be imported"
    )
    assert said in output and "PYTHONPATH" in output and "Traceback" not in output


def test_files_and_names_that_the_page_sends_editors_to_exist():
    for path in re.findall(r"`(verl_aiops/[\w/]+(?:\.py|/))`|`(tests/\w+\.py)`", PAGE):
        assert (ROOT / "".join(path)).exists(), path
    for file, name in (("settings.py", "class LossSettings:"), ("table.py", "class LossSpec")):
        assert f"`verl_aiops/losses/{file}`" in PAGE
        assert name in (ROOT / "verl_aiops" / "losses" / file).read_text(encoding="utf-8")
    support = (ROOT / "verl_aiops" / "trainers" / "logprobs" / "support.py").read_text(encoding="utf-8")
    for name in ("choose_backend", "longest_pair"):
        assert f"`{name}`" in PAGE and f"def {name}(" in support


@pytest.mark.e2e
def test_main_ppo_trains_with_the_new_loss(shell, folder, tiny_model_dir):
    """Driver and worker processes alike know it; without a reference nothing is scored beforehand."""
    (block,) = blocks("train")
    status, output = shell(
        "verl-aiops build-prefs --num-incidents 12 --style direct --max-chars 200 --out prefs.parquet"
    )
    assert status == 0, output
    few = "trainer.total_training_steps=2 trainer.logger=[console,file] data.max_prompt_length=2048"
    command = block.text.rstrip().replace("MODEL", str(tiny_model_dir))
    status, output = shell(
        f"{command} {few} trainer.default_local_dir={folder / 'run'}",
        timeout=600,
        VERL_FILE_LOGGER_PATH=str(folder / "metrics.jsonl"),
    )
    assert status == 0, output[-6000:]
    steps: dict[int, dict] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        steps.setdefault(entry["step"], {}).update(entry["data"])
    first = steps[1]
    # -log S(beta gap), whose mean over pairs lies above that of the mean gap: a convex function
    gap = first["logps/chosen"] - first["logps/rejected"]
    assert first["actor/loss"] >= math.log1p(math.exp(-0.1 * gap)) - 1e-6
    assert first["actor/loss"] != pytest.approx(math.log(2), abs=1e-4)
    assert not any(name.startswith("reference/") for name in first)


def test_the_reward_of_another_task_pays_as_the_page_says(shell):
    output = python(
        shell,
        "from my_sums import compute_score\n"
        "for texts in (['42'], ['it is 42'], ['none', '42'], ['', ''], ['\\x00' * 9]):\n"
        "    got = compute_score('sums', ''.join(texts), '42', {'texts': texts})\n"
        "    print(round(got['score'], 3), got['acc'])",
    )
    assert output.split() == ["1.0", "1.0", "0.625", "1.0", "0.9", "1.0", "0.0", "0.0", "0.0", "0.0"]


@pytest.mark.slow
@pytest.mark.e2e
def test_grpo_trains_with_a_reward_and_an_agent_loop_of_a_users_own(shell, folder, tiny_model_dir):
    """Another task from its data to a model folder, by the commands of the page."""
    (block,) = blocks("job")
    command = block.text.rstrip().replace("MODEL", str(tiny_model_dir))
    status, output = shell(f"set -e; {command} --steps 2 data.max_response_length=64", timeout=600)
    log = (folder / "runs" / "sums" / "train.log").read_text()
    assert status == 0, output[-3000:] + log[-3000:]
    shown = output.splitlines()
    steps = [line for line in shown if line.startswith("step ")]
    assert [line.split("  ")[0] for line in steps] == ["step 1/2", "step 2/2"]
    assert all(re.search(r"  reward 0\.\d+  right \d\.\d\d  loss ", line) for line in steps)
    entries = [json.loads(line) for line in (folder / "runs" / "sums" / "metrics.jsonl").read_text().splitlines()]
    logged = {key: value for entry in entries for key, value in entry["data"].items()}
    assert logged["reward/digits"] >= 0 and "val-aux/sums/digits/mean@1" in logged
    # some were asked again: a conversation has two messages, or four
    assert logged["num_turns/min"] >= 2 and logged["num_turns/max"] == 4
    card = (folder / "runs" / "sums" / "huggingface" / "README.md").read_text()
    assert "trained by grpo" in card and "`my_sums.py`" in card and str(folder) not in card
    status, output = shell("verl-aiops curves runs/sums/metrics.jsonl --out sums.svg")
    assert status == 0 and (folder / "sums.svg").is_file(), output
