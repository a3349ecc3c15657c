"""Second runs, adapters and broken weights through verl's stock main_ppo, on CPU with a tiny model."""

import json
import os
import shutil
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def _row(number):
    return {
        "prompt": [{"role": "user", "content": f"Which service failed in incident {number}?"}],
        "chosen": [{"role": "assistant", "content": f"svc{number}"}],
        "rejected": [{"role": "assistant", "content": f"svc{(number + 3) % 10}"}],
    }


@pytest.fixture(scope="module")
def main_ppo(tiny_model_dir, tmp_path_factory):
    """main_ppo(folder, *overrides, model=...) -> (exit code, output) of 4 steps of 4 of 10 pairs."""
    shared = tmp_path_factory.mktemp("shared")
    pairs = shared / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(_row(number)) + "\n" for number in range(10)))

    def run(folder, *overrides, model=tiny_model_dir):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("VERL_FILE_LOGGER", "TENSORBOARD"))}
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "verl.trainer.main_ppo", "+verl_aiops=[dpo,cpu]"),
                *(f"data.train_files={pairs}", "data.train_batch_size=4"),
                *("data.max_prompt_length=256", "data.max_response_length=64"),
                *(f"actor_rollout_ref.model.path={model}", "actor_rollout_ref.actor.optim.lr=1e-3"),
                *("trainer.total_training_steps=4", "trainer.save_freq=2", "trainer.logger=[console,file]"),
                f"trainer.default_local_dir={folder}",
                *overrides,
            ],
            env={**environment, "VERL_AIOPS_CACHE": str(shared / "cache")},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        return done.returncode, done.stdout

    return run


def _metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["data"] for row in rows]


def _repeats_from_step_2(main_ppo, whole, cut, settings):
    """A run that was ended behind its second step goes on in ``cut`` with the losses of the whole one."""
    shutil.copytree(whole / "global_step_2", cut / "global_step_2")
    (cut / "latest_checkpointed_iteration.txt").write_text("2")
    (cut / "metrics.jsonl").write_text("".join((whole / "metrics.jsonl").read_text().splitlines(True)[:2]))
    code, output = main_ppo(cut, *settings)
    assert code == 0, output[-5000:]
    assert [row["actor/loss"] for row in _metrics(cut)] == [row["actor/loss"] for row in _metrics(whole)]


@pytest.fixture(scope="module")
def finished(main_ppo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    code, output = main_ppo(folder)
    assert code == 0, output[-5000:]
    return folder


def _copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def test_the_same_command_again_has_nothing_left_and_changes_nothing(finished, main_ppo, tmp_path):
    folder = _copy(finished, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if "outputs" not in path.parts}
    code, output = main_ppo(folder)
    assert code == 0 and "nothing left to train" in output and "trained model" not in output
    code, output = main_ppo(folder, "trainer.total_training_steps=3")
    assert code == 1 and "more than the 3 that this run asks for" in output and "Traceback" not in output
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if "outputs" not in path.parts}
    assert after == before


def test_a_resumed_run_uses_another_rate_and_keeps_the_earlier_metrics(finished, main_ppo, tmp_path):
    folder = _copy(finished, tmp_path)
    changed = ("trainer.total_training_steps=6", "actor_rollout_ref.actor.optim.lr=1e-6", "algorithm.dpo.beta=0.4")
    code, output = main_ppo(folder, *changed)
    assert code == 0, output[-5000:]
    for key in ("actor_rollout_ref.actor.optim.lr: 0.001 -> 1e-06", "algorithm.dpo.beta: 0.1 -> 0.4"):
        assert f"from step 5 on: {key}" in output
    rows = _metrics(folder)
    assert [row["actor/lr"] for row in rows] == [1e-3] * 4 + [1e-6] * 2
    assert rows[:4] == _metrics(finished)
    assert json.loads((folder / "huggingface" / "checkpoint.json").read_text()) == {"checkpoint": "global_step_6"}
    assert (folder / "latest_checkpointed_iteration.txt").read_text() == "6"


def test_a_save_that_was_cut_short_is_made_good_by_the_same_command(finished, main_ppo, tmp_path):
    """As a full disk leaves it: half a last checkpoint, and the one before declared complete."""
    folder = _copy(finished, tmp_path)
    (folder / "latest_checkpointed_iteration.txt").write_text("2")
    shutil.rmtree(folder / "huggingface")
    for shard in (folder / "global_step_4" / "actor").glob("*.pt"):
        shard.write_bytes(shard.read_bytes()[:100])
    code, output = main_ppo(folder)
    assert code == 0 and "trained model" in output, output[-5000:]
    same = [[row[name] for row in _metrics(run)] for run in (folder, finished) for name in ("actor/loss",)]
    assert same[0] == same[1]
    assert (folder / "latest_checkpointed_iteration.txt").read_text() == "4"
    exported = [(run / "huggingface" / "model.safetensors").read_bytes() for run in (folder, finished)]
    assert exported[0] == exported[1]


@pytest.mark.parametrize("reference", ["cached", "live"])
def test_from_an_adapter_the_first_loss_is_ln_2_and_a_resume_repeats_the_rest(
    main_ppo, tiny_model_dir, tmp_path, reference
):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=6, lora_dropout=0.1, target_modules="all-linear")
    model = get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    settings = (
        f"actor_rollout_ref.model.lora_adapter_path={tmp_path / 'adapter'}",
        f"algorithm.dpo.reference={reference}",
    )
    whole = tmp_path / "whole"
    code, output = main_ppo(whole, *settings)
    assert code == 0, output[-5000:]
    rows = _metrics(whole)
    assert f"{rows[0]['actor/loss']:.6f}" == "0.693147" and rows[0]["rewards/margins"] == 0.0
    assert rows[1]["actor/loss"] != rows[0]["actor/loss"]
    _repeats_from_step_2(main_ppo, whole, tmp_path / "cut", settings)


def test_adapters_on_a_base_in_four_bits_from_the_first_step_to_a_resume_and_the_model(main_ppo, tmp_path):
    """The reference is that base without adapters, so the first loss is ln 2; quantised anew the base is the same."""
    pytest.importorskip("bitsandbytes")
    from safetensors import safe_open

    settings = (
        "actor_rollout_ref.model.lora_rank=4",
        "+actor_rollout_ref.model.lora.base_format=nf4",
        "algorithm.dpo.logprob_backend=shared_prompt",
    )
    whole = tmp_path / "whole"
    code, output = main_ppo(whole, *settings)
    assert code == 0, output[-5000:]
    assert "weights of the base in four bits: it takes" in output
    rows = _metrics(whole)
    assert f"{rows[0]['actor/loss']:.6f}" == "0.693147" and rows[0]["rewards/margins"] == 0.0
    assert len({row["actor/loss"] for row in rows}) == 4
    with safe_open(whole / "huggingface" / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert {str(weights.get_tensor(name).dtype) for name in names} == {"torch.bfloat16"}
    assert (whole / "huggingface" / "lora_adapter" / "adapter_model.safetensors").is_file()
    _repeats_from_step_2(main_ppo, whole, tmp_path / "cut", settings)


def test_a_model_with_a_weight_that_is_nan_trains_nothing(main_ppo, tiny_model_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(tiny_model_dir, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    weights[name][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    code, output = main_ppo(tmp_path / "run", model=broken)
    assert code != 0 and f"1 weights of {broken} are not finite: {name}" in output
    assert "trained model" not in output
    assert not [path for path in (tmp_path / "run").iterdir() if path.name != "outputs"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_loss_that_stops_being_finite_ends_the_run(main_ppo, tmp_path, workers):
    """A rate with which the weights leave float32's range: nothing of it is exported."""
    settings = (
        "actor_rollout_ref.actor.optim.lr=1e38",
        f"trainer.n_gpus_per_node={workers}",
        "trainer.device=cpu",
        "trainer.save_freq=-1",
    )
    code, output = main_ppo(tmp_path / "run", *settings)
    assert code != 0 and "NotFiniteError" in output and "trained model" not in output
    assert not list((tmp_path / "run").glob("global_step_*"))
