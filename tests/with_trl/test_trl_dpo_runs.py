"""`verl-aiops trl-dpo` as a command: what it writes, goes on from and refuses; and our checkpoints in TRL's hands."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("trl", minversion="1.16")
pytest.importorskip("peft")

import torch
from eval_harness import verl_run
from trl_dpo_harness import LIMITS, pairs_of, row, trained_checkpoint
from worker_harness import run_workers

from verl_aiops.cli.main import main
from verl_aiops.trl import dpo, dpo_start, extra
from verl_aiops.trl.extra import last_checkpoint

QUICK = ["--device", "cpu", "--batch-size", "4", "--micro-batch", "2", "--lr", "1e-3"]
QUICK += [part for name, value in LIMITS.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def command(data, model, out, *more):
    return main(["trl-dpo", "--data", str(data), "--model", str(model), "--out", str(out), *QUICK, *more])


@pytest.fixture
def data(write_rows):
    return write_rows([row(at, rounds=2) for at in range(12)], "prefs.parquet")


@pytest.fixture
def held_out(write_rows):
    return write_rows([row(at, rounds=2) for at in range(20, 25)], "prefs.val.parquet")


def weights_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# --- what is written -------------------------------------------------------------------------------------------------


def test_the_result_is_a_plain_model_folder_with_its_metrics(data, held_out, tiny_model_dir, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from verl_aiops.evaluation import training_curves as curves
    from verl_aiops.evaluation.run import before_after
    from verl_aiops.models.folders import find_model

    out = tmp_path / "trl_dpo"
    assert command(data, tiny_model_dir, out, "--val", held_out, "--epochs", "2", "--eval-steps", "3") == 0
    said = capsys.readouterr().out
    assert "6 steps, loss 0.6931 at the first" in said and f"actor_rollout_ref.model.path={out}" in said

    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    start = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    moved = [(a - b).abs().max() for a, b in zip(model.parameters(), start.parameters(), strict=True)]
    assert all(0 < gap < 0.1 for gap in moved)
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (out, tiny_model_dir)]
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    assert pairs_of(data, tokenizers[0]).identity() == pairs_of(data, tokenizers[1]).identity()
    assert find_model(str(out)).settings == out

    rows = curves.read_metrics(out / "metrics.jsonl")
    assert [entry["step"] for entry in rows if "actor/loss" in entry] == list(range(1, 7))
    before, after = before_after.held_out(rows)
    assert [entry["step"] for entry in rows if "val/loss" in entry] == [0, 3, 6] and after["val/pairs"] == 5
    assert before["val/loss"] == pytest.approx(math.log(2), abs=1e-5) and after["val/loss"] < before["val/loss"]
    assert after["val/rewards/margins"] > 0 and 0 <= after["val/logps/accuracies"] <= 1
    stats = json.loads((out / "dpo_stats.json").read_text())
    assert stats["after"]["val/loss"] == after["val/loss"] and stats["settings"]["loss_type"] == ["sigmoid"]
    assert (out / "curves.png").stat().st_size > 10_000 and not (out / "adapter").exists()
    assert command(data, tiny_model_dir, out, "--val", held_out, "--epochs", "2", "--eval-steps", "3") == 2
    assert "holds a finished model" in capsys.readouterr().err


@pytest.mark.slow
def test_adapter_on_the_first_model_and_merged_model_are_one(data, tiny_model_dir, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = tmp_path / "lora"
    assert command(data, tiny_model_dir, out, "--lora-rank", "4", "--gradient-checkpointing") == 0
    start = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        first = start(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(out)(ids).logits
        adapted = PeftModel.from_pretrained(start, out / "adapter")(ids).logits
    assert torch.allclose(merged, adapted, atol=1e-4) and not torch.allclose(merged, first, atol=1e-2)


# --- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--lora-rank", "4"]], ids=["whole", "lora"])
@pytest.mark.parametrize("steps", [2, 4])
def test_a_stopped_run_goes_on_to_the_same_end(
    data, held_out, tiny_model_dir, tmp_path, capsys, monkeypatch, more, steps
):
    """Stopped in the second epoch, or after its last step: what was trained is not trained again."""
    options = [*more, "--val", held_out, "--epochs", "2", "--max-steps", "4", "--save-steps", "2", "--warmup", "0.5"]
    assert command(data, tiny_model_dir, tmp_path / "whole", *options) == 0

    from verl_aiops.trl.dpo_trainer import PairDPOTrainer

    compute, out = PairDPOTrainer._save_checkpoint, tmp_path / "stopped"

    def stop(self, *args, **kwargs):
        compute(self, *args, **kwargs)
        if self.state.global_step == steps:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PairDPOTrainer, "_save_checkpoint", stop)
        assert command(data, tiny_model_dir, out, *options) == 130
    assert not (out / "config.json").exists()
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "data": {"actor/loss": 1e9}}\n{"step": 3, "da')  # beyond the checkpoint, and cut short
    capsys.readouterr()
    if steps == 4:
        (out / "metrics.jsonl").write_text("".join((out / "metrics.jsonl").read_text().splitlines(True)[:-2]))
    assert command(data, tiny_model_dir, out, *options) == 0
    assert f"going on from {out}/checkpoints/checkpoint-{steps}" in capsys.readouterr().out
    assert same(weights_of(tmp_path / "whole"), weights_of(out))
    logged = []
    for name in ("whole", "stopped"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        kept = ("actor/loss", "actor/lr", "actor/grad_norm", "val/loss", "val/rewards/margins")
        logged.append([(line["step"], *(line["data"].get(key) for key in kept)) for line in lines])
    assert logged[0] == logged[1]


@pytest.mark.slow
def test_the_reference_is_not_scored_again(data, tiny_model_dir, tmp_path, monkeypatch, capsys):
    from verl_aiops.trl.dpo_trainer import PairDPOTrainer

    out, scored, score = tmp_path / "out", [], PairDPOTrainer.compute_ref_log_probs

    def counted(self, model, inputs):
        scored.append(len(inputs["input_ids"]) // 2)
        return score(self, model, inputs)

    monkeypatch.setattr(PairDPOTrainer, "compute_ref_log_probs", counted)
    with monkeypatch.context() as patch:
        patch.setattr(PairDPOTrainer, "train_from", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command(data, tiny_model_dir, out) == 130
    assert sum(scored) == 12
    assert command(data, tiny_model_dir, out) == 0 and sum(scored) == 12


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(write_rows, tiny_model_dir, tmp_path, capsys):
    """SIGKILL after a checkpoint, then a newer checkpoint cut short: what a kill during a save leaves."""
    data = write_rows([row(at, rounds=2) for at in range(32)], "p.parquet")
    more = ["--save-steps", "3", "--epochs", "4", "--schedule", "cosine"]
    assert command(data, tiny_model_dir, tmp_path / "whole", *more) == 0
    out = tmp_path / "killed"
    line = [sys.executable, "-m", "verl_aiops.cli", "trl-dpo", "--data", data, "--model", str(tiny_model_dir)]
    run = subprocess.Popen([*line, "--out", str(out), *QUICK, *more], stderr=subprocess.DEVNULL, env={**os.environ})
    try:
        until = time.monotonic() + 240
        while not last_checkpoint(out) and run.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert run.returncode == -signal.SIGKILL and not (out / "config.json").exists()
    cut = out / "checkpoints" / "checkpoint-999"
    shutil.copytree(last_checkpoint(out), cut)
    (cut / "trainer_state.json").unlink()
    capsys.readouterr()
    assert command(data, tiny_model_dir, out, *more) == 0
    assert "going on from" in capsys.readouterr().out
    left, right = weights_of(tmp_path / "whole"), weights_of(out)
    assert max(float((left[name] - right[name]).abs().max()) for name in left) < 1e-5


# --- the way back ----------------------------------------------------------------------------------------------------


def one_step_in_trl(folder, data, out, peft_config=None, model=None):
    """As a user of TRL would: a folder and a file of messages, no line of ours."""
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=4,
        max_steps=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_length=None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    rows = load_dataset("parquet", data_files=data, split="train", cache_dir=str(out / "cache"))
    rows = rows.select_columns(["prompt", "chosen", "rejected"])
    trainer = DPOTrainer(model=model or str(folder), args=arguments, train_dataset=rows, peft_config=peft_config)
    trainer.train()
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def exported(run):
    from omegaconf import OmegaConf

    from verl_aiops.trainers.dpo.checkpoints import export_model

    settings = {"trainer": {"default_local_dir": str(run)}}
    settings["actor_rollout_ref"] = {"model": {"trust_remote_code": False}}
    return export_model(str(run / "global_step_4"), OmegaConf.create(settings))


def test_our_exported_checkpoint_trains_on_in_trl(write_rows, tiny_model_dir, tmp_path):
    from peft import LoraConfig

    data = write_rows([row(at) for at in range(4)], "prefs.parquet")
    folder = exported(verl_run(tmp_path / "run", tiny_model_dir))
    for adapters in (None, LoraConfig(r=4, target_modules="all-linear")):
        trainer, (first, second) = one_step_in_trl(folder, data, tmp_path / "trl", adapters)
        assert first == pytest.approx(math.log(2), abs=1e-4) and second < first
    ours = pairs_of(data, trainer.processing_class)
    assert [list(item) for item in trainer.train_dataset["chosen_ids"]] == [
        ours[at]["chosen_ids"].tolist() for at in range(4)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 4])
def test_what_our_trainer_has_trained_opens_in_trl_and_in_this_command(write_rows, tiny_model_dir, tmp_path, rank):
    """A step of the worker, verl's checkpoint, our export, and TRL on the folder; with LoRA on its adapters too."""
    from transformers import AutoModelForCausalLM

    data = write_rows([row(at) for at in range(4)], "prefs.parquet")
    run = tmp_path / "run"
    actor = str(run / "global_step_4" / "actor")
    run_workers(tiny_model_dir, 1, trained_checkpoint, data, str(tiny_model_dir), actor, lora_rank=rank)
    folder = exported(run)
    start = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    after = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    moved = [float((a - b).detach().abs().max()) for a, b in zip(start.parameters(), after.parameters(), strict=True)]
    assert max(moved) > 1e-4
    _, (first, second) = one_step_in_trl(folder, data, tmp_path / "trl")
    assert first == pytest.approx(math.log(2), abs=1e-4) and second < first
    if rank:
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(start, f"{folder}/lora_adapter", is_trainable=True)
        _, (first, second) = one_step_in_trl(None, data, tmp_path / "adapters", model=adapted)
        assert first == pytest.approx(math.log(2), abs=1e-4) and second < first
    assert command(data, folder, tmp_path / "again") == 0


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(capsys, out, code):
    said = capsys.readouterr().err
    assert code == 2 and not out.exists() and "Traceback" not in said
    return said[said.index("verl-aiops: error:") :]


def test_weights_are_refused_by_row(write_rows, tiny_model_dir, tmp_path, capsys):
    rows = [{**row(at), "weight": 2.0 if at in (2, 3) else 1.0} for at in range(6)]
    for at in rows:
        del at["id"]
    said = refused(capsys, tmp_path / "out", command(write_rows(rows, "w.jsonl"), tiny_model_dir, tmp_path / "out"))
    assert "2 of 6 pairs have a weight other than 1" in said and "w.jsonl:3: weight=2.0" in said
    assert "remove the column, or train with main_ppo" in said


def test_long_pairs_are_told_in_this_commands_options(data, tiny_model_dir, tmp_path, capsys):
    out = tmp_path / "out"
    said = refused(capsys, out, command(data, tiny_model_dir, out, "--max-response-length", "20"))
    assert "12 of 12 rows are too long" in said and "raise --max-prompt-length or --max-response-length" in said
    assert "set --truncation drop" in said and "data." not in said


def test_a_missing_column_is_named(write_rows, tiny_model_dir, tmp_path, capsys):
    rows = [{name.replace("rejected", "reject"): value for name, value in row(at).items()} for at in range(4)]
    out = tmp_path / "out"
    said = refused(capsys, out, command(write_rows(rows, "wrong.parquet"), tiny_model_dir, out))
    assert "wrong.parquet lacks the column(s) 'rejected'" in said and "_key" not in said


def test_what_does_not_fit_the_model_is_told_before_it_is_loaded(
    write_rows, tiny_model_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(dpo, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    out, model = tmp_path / "out", tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    config = json.loads((model / "config.json").read_text())
    data = write_rows([row(at) for at in range(6)])
    for change, said in (
        ({"max_position_embeddings": 32}, "tokens, and the model 32 positions"),
        ({"vocab_size": 100}, "tokenizer, and the model knows 100 tokens"),
    ):
        (model / "config.json").write_text(json.dumps(config | change))
        assert said in refused(capsys, out, command(data, model, out))
        assert f"--reference-model {model}" in refused(
            capsys, out, command(data, tiny_model_dir, out, "--reference-model", str(model))
        )
    assert "6 usable pairs, fewer than one step" in refused(
        capsys, out, command(data, tiny_model_dir, out, "--batch-size", "8")
    )


def test_models_without_a_tokenizer_are_told_in_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    for model, found in (("nowhere", "no such folder, and as a name on the hub "), (empty, "")):
        (said,) = refused(capsys, out, command("pairs.jsonl", model, out)).splitlines()
        assert f"--model {model}: {found}its tokenizer cannot be loaded: " in said and "as get-model makes" in said


def test_a_folder_that_cannot_be_used_is_told_before_data_is_read(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("!")
    assert command("missing.jsonl", "nowhere", tmp_path) == 2
    assert f"{tmp_path} holds other files" in capsys.readouterr().err


def test_a_reward_model_is_no_policy(write_rows, tiny_model_dir, tmp_path, capsys):
    from transformers import AutoModelForSequenceClassification

    model, out = tmp_path / "rm", tmp_path / "out"
    shutil.copytree(tiny_model_dir, model)
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    classifier.config.tie_word_embeddings = False
    classifier.save_pretrained(model)
    said = refused(capsys, out, command(write_rows([row(at) for at in range(4)]), model, out))
    assert f"--model {model} is no causal language model: it lacks lm_head.weight" in said


def test_a_run_that_diverges_says_so_and_looks_unfinished(data, tiny_model_dir, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(data, tiny_model_dir, out, "--lr", "1e38") == 2
    assert "the training diverged" in capsys.readouterr().err
    assert not (out / "config.json").exists() and not (out / "dpo_stats.json").exists()


def test_without_the_extra_or_with_an_old_one_the_command_says_so(tiny_model_dir, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(extra, "find_spec", lambda name: None)
        assert 'pip install "verl-aiops[trl]"' in refused(capsys, out, command("missing", tiny_model_dir, out))
    monkeypatch.setattr(dpo_start.importlib.metadata, "version", lambda name: "1.3.0")
    assert "trl 1.3.0 is installed, 1.16 or newer is needed" in refused(
        capsys, out, command("missing", tiny_model_dir, out)
    )
    monkeypatch.setattr(dpo_start.sys, "version_info", (3, 10, 14))
    assert "which wants Python 3.11 or newer (this is 3.10); train-rm works here" in refused(
        capsys, out, command("missing", tiny_model_dir, out)
    )


def test_the_learning_rate_is_larger_with_lora(monkeypatch):
    seen = []

    class Done:
        def summary(self):
            return ""

    monkeypatch.setattr(dpo, "train_dpo", lambda given, *_, **__: (seen.append(given), Done())[1])
    base = ["trl-dpo", "--data", "a", "--model", "b", "--out", "c"]
    for more in ([], ["--lora-rank", "8"], ["--lora-rank", "8", "--lr", "2e-4", "--loss-type", "sigmoid", "sft"]):
        assert main([*base, *more]) == 0
    assert [given.lr for given in seen] == [1e-6, 1e-5, 2e-4]
    assert seen[2].loss_type == ("sigmoid", "sft") and seen[2].loss_weights is None
