"""`verl-aiops train-rm`: the loss against its formula, what a killed run leaves, and what a user may get wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("trl")
pytest.importorskip("peft")

from tiny import make_tokenizer
from trl_rm_harness import train_by_trl

from verl_aiops.trl import extra
from verl_aiops.trl.extra import TrainingError, last_checkpoint, move_into, prepare_folder
from verl_aiops.trl.reward import train_reward_model
from verl_aiops.trl.reward_data import read_reward_pairs, split_by_group
from verl_aiops.trl.reward_settings import RewardTraining


def row(at, **more):
    """The answer's first word tells right from wrong."""
    prompt = [{"role": "user", "content": f"logs {at}"}]
    chosen, rejected = ([{"role": "assistant", "content": f"{word} {at % 7}"}] for word in ("full", "none"))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "group": f"g{at // 2}", **more}


def settings(data, model, **given):
    quick = {"lr": 3e-3, "batch_size": 8, "lora_rank": 4, "lora_alpha": 8, "val_share": 0.25, "device": "cpu"}
    return RewardTraining(data=(data,), model=str(model), **(quick | given))


def rewards_of(model, conversations):
    """One by one, so without padding."""
    import torch

    with torch.no_grad():
        return np.array([model.eval()(input_ids=torch.tensor([ids])).logits.item() for ids in conversations])


def classifier(folder):
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "center, margins, margin",
    [(None, None, 0.0), (None, None, 1.5), (None, [0.0, 0.5, 3.0], 9.0), (0.7, [0.0, 0.5, 3.0], 0.0)],
    ids=["plain", "one margin", "a column of margins goes before --margin", "centred"],
)
def test_the_loss_is_its_formula(write_rows, tiny_model_dir, tmp_path, center, margins, margin):
    """One step over all pairs at a learning rate that moves no weight; rewards and formula computed here."""
    rows = [row(at, **({"margin": margins[at % 3]} if margins else {})) for at in range(12)]
    data, held_out = write_rows(rows, "train.parquet"), write_rows([row(at) for at in range(50, 54)], "val.jsonl")
    given = {"lr": 1e-30, "lora_rank": 0, "batch_size": 12, "center": center, "margin": margin}
    out = tmp_path / "rm"
    train_reward_model(settings(data, tiny_model_dir, val=(held_out,), **given), str(out))

    read, model = read_reward_pairs(data, make_tokenizer(), 4000), classifier(out)
    chosen, rejected = rewards_of(model, read.chosen_ids), rewards_of(model, read.rejected_ids)
    lead = np.array([row["margin"] for row in rows]) if margins else margin
    expected = np.logaddexp(0, -(chosen - rejected - lead)).mean()
    if center:
        centring = center * ((chosen + rejected) ** 2).mean()
        assert centring > 1e-3
        expected += centring
    lines = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line] == [pytest.approx(expected, abs=2e-5)]


# --- what is written -------------------------------------------------------------------------------------------------


def test_adapter_on_the_first_model_and_merged_model_are_one(write_rows, tiny_model_dir, tmp_path):
    """The adapter folder holds the trained score head: the first model's own is random."""
    from peft import PeftModel
    from safetensors.torch import load_file

    data, out = write_rows([row(at) for at in range(48)], "p.parquet"), tmp_path / "rm"
    train_reward_model(settings(data, tiny_model_dir), str(out))
    assert any("score" in name for name in load_file(out / "adapter" / "adapter_model.safetensors"))
    read = read_reward_pairs(data, make_tokenizer(), 4000)
    adapted = PeftModel.from_pretrained(classifier(tiny_model_dir), out / "adapter")
    with_adapter, merged = (rewards_of(model, read.conversations[:10]) for model in (adapted, classifier(out)))
    assert with_adapter == pytest.approx(merged, abs=1e-5)
    assert np.ptp(merged) > 0.01


def test_held_out_pairs_that_are_trained_on_and_long_ones_are_told(write_rows, tiny_model_dir, tmp_path, capsys):
    held_out = [row(at) for at in (3, 60, 61, 62)] + [row(at) for at in range(70, 76)]
    held_out[-1]["chosen"][0]["content"] += " x" * 300
    data, val = write_rows([row(at) for at in range(16)], "p.jsonl"), write_rows(held_out, "v.jsonl")
    out = tmp_path / "rm"
    assert train_by_trl(data, tiny_model_dir, out, "--val", val, "--max-length", "200", "--lora-rank", "2") == 0
    said = capsys.readouterr().out
    assert "left out as too long: 0 of --data, 1 of --val" in said
    assert "1 of the 9 held-out pairs are in the training data too" in said
    stats = json.loads((out / "reward_stats.json").read_text())
    assert (stats["pairs"], stats["val_too_long"], stats["held_out_in_training"]) == (9, 1, 1)
    read = read_reward_pairs(data, make_tokenizer(), 200)
    assert stats["train_tokens"] == sum(map(len, read.chosen_ids)) + sum(map(len, read.rejected_ids))
    assert stats["files"] == {"data": [data], "val": [val]}


def test_a_pair_that_is_left_out_may_be_longer_than_the_models_positions(write_rows, tiny_model_dir, tmp_path):
    rows = [row(at) for at in range(24)]
    rows[3]["chosen"][0]["content"] += " x" * 4500
    result = train_reward_model(settings(write_rows(rows), tiny_model_dir, epochs=0.1), str(tmp_path / "rm"))
    assert result.too_long == 1 and result.train_pairs + result.after.pairs == 23


def test_without_groups_pairs_of_one_prompt_stay_on_one_side(write_rows):
    rows = [row(at // 4, id=f"row{at}") for at in range(160)]
    for at, one in enumerate(rows):
        one["chosen"][0]["content"] += f" {at}"
        del one["group"]
    tokenizer = make_tokenizer()
    sides = split_by_group(read_reward_pairs(write_rows(rows), tokenizer, 4000), 0.3, 0)
    prompts = [{tokenizer.decode(ids).partition("<|im_end|>")[0] for ids in side.chosen_ids} for side in sides]
    assert sum(map(len, sides)) == 160 and not prompts[0] & prompts[1]
    assert len(prompts[0]) + len(prompts[1]) == 40


# --- runs that were stopped ------------------------------------------------------------------------------------------


def test_a_checkpoint_that_was_being_written_is_passed_over(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, state in ((50, "{}"), (100, "{}"), (1000, '{"cut'), (1050, None)):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoints" / "checkpoint-100")


def test_the_files_that_make_a_folder_whole_come_last(tmp_path, monkeypatch):
    made, moved, replace = tmp_path / ".partial", [], os.replace
    made.mkdir()
    names = {"reward_stats.json", "config.json", "adapter", "model.safetensors", "tokenizer.json", "train_log.jsonl"}
    for name in names:
        (made / name).write_text("{}")
    monkeypatch.setattr(extra.os, "replace", lambda old, new: (moved.append(old.name), replace(old, new)))
    move_into(tmp_path, made, last="reward_stats.json")
    assert set(moved) == names and moved[-2:] == ["config.json", "reward_stats.json"] and not made.exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(write_rows, tiny_model_dir, tmp_path, capsys):
    """SIGKILL after a checkpoint, then a newer checkpoint cut short: what a kill during a save leaves."""
    data = write_rows([row(at) for at in range(64)], "p.parquet")
    more = ["--lr", "3e-3", "--lora-rank", "4", "--val-share", "0.25", "--save-steps", "3", "--epochs", "8"]
    assert train_by_trl(data, tiny_model_dir, tmp_path / "whole", *more) == 0

    out = tmp_path / "killed"
    line = [
        sys.executable,
        "-m",
        "verl_aiops.cli",
        "train-rm",
        "--backend",
        "trl",
        "--data",
        data,
        "--model",
        str(tiny_model_dir),
    ]
    run = subprocess.Popen([*line, "--out", str(out), "--device", "cpu", *more], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 240
        while not last_checkpoint(out) and run.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert run.returncode == -signal.SIGKILL and not (out / "config.json").exists()
    whole = last_checkpoint(out)
    cut = out / "checkpoints" / "checkpoint-999"
    shutil.copytree(whole, cut)
    (cut / "trainer_state.json").unlink()
    (cut / "optimizer.pt").write_bytes(b"cut")
    capsys.readouterr()
    assert train_by_trl(data, tiny_model_dir, out, *more) == 0
    assert f"going on from {whole}" in capsys.readouterr().out
    stats = [json.loads((tmp_path / name / "reward_stats.json").read_text()) for name in ("whole", "killed")]
    for key in ("reward_mean", "reward_std", "log_loss", "accuracy"):
        assert stats[0][key] == pytest.approx(stats[1][key], abs=1e-5), key
    read = read_reward_pairs(data, make_tokenizer(), 4000)
    both = [rewards_of(classifier(tmp_path / name), read.conversations[:8]) for name in ("whole", "killed")]
    assert both[0] == pytest.approx(both[1], abs=1e-5)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("note", ['{"editor.fontSize": 12}', "", "[1]"])
def test_overwrite_removes_no_folder_of_another_program(tmp_path, note):
    (tmp_path / "settings.json").write_text(note)
    (tmp_path / "thesis.txt").write_text("!")
    with pytest.raises(TrainingError, match="holds other files"):
        prepare_folder(str(tmp_path), {"lr": 1}, "done", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.json", "thesis.txt"]


def test_an_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "rm").write_text("")
    with pytest.raises(TrainingError, match="rm is a file: choose another --out"):
        prepare_folder(str(tmp_path / "rm"), {"lr": 1}, "done", overwrite=True)


@pytest.mark.parametrize("option", ["--lr", "--epochs", "--margin", "--center-rewards", "--val-share"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_that_are_none_are_refused(write_rows, tiny_model_dir, tmp_path, capsys, option, value):
    out = tmp_path / "rm"
    assert train_by_trl(write_rows([row(0)]), tiny_model_dir, out, option, value) == 2
    assert f"{option} {value}: expected a " in capsys.readouterr().err and not out.exists()


def test_a_missing_column_and_tools_are_named(write_rows, tiny_model_dir, tmp_path, capsys):
    wrong = [{name: value for name, value in row(at).items() if name != "rejected"} for at in range(3)]
    assert train_by_trl(write_rows(wrong, "wrong.parquet"), tiny_model_dir, tmp_path / "rm") == 2
    said = capsys.readouterr().err
    assert "wrong.parquet lacks the column(s) 'rejected'; found: 'prompt', 'chosen', 'group'" in said
    assert "_key" not in said  # the settings of verl's trainers, which this command does not have
    rows = [row(0), row(1, tools=[{"type": "function"}])]
    assert train_by_trl(write_rows(rows, "tools.jsonl"), tiny_model_dir, tmp_path / "rm") == 2
    assert "tools.jsonl, line 2: tools: a reward model is not shown them" in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_leaves_no_folder(write_rows, tiny_model_dir, tmp_path, capsys):
    model, out = tmp_path / "model", tmp_path / "rm"
    shutil.copytree(tiny_model_dir, model)
    (model / "model.safetensors").unlink()
    assert train_by_trl(write_rows([row(at) for at in range(24)]), model, out, "--val-share", "0.3") == 2
    assert "cannot be loaded as a classifier" in capsys.readouterr().err and not out.exists()


def test_a_conversation_beyond_the_models_positions_is_told_before_training(
    write_rows, tiny_model_dir, tmp_path, capsys
):
    rows = [row(at) for at in range(24)]
    rows[3]["chosen"][0]["content"] += " x" * 4500
    out = tmp_path / "rm"
    assert train_by_trl(write_rows(rows), tiny_model_dir, out, "--max-length", "20000", "--val-share", "0.3") == 2
    assert "and the model 4096 positions; choose --max-length 4096" in capsys.readouterr().err and not out.exists()


def test_a_run_that_diverges_says_so_and_looks_unfinished(write_rows, tiny_model_dir, tmp_path, capsys):
    data, out = write_rows([row(at) for at in range(24)]), tmp_path / "rm"
    assert train_by_trl(data, tiny_model_dir, out, "--lr", "1e30", "--no-lora", "--val-share", "0.3") == 2
    assert "the training diverged" in capsys.readouterr().err
    assert not (out / "config.json").exists() and not (out / "reward_stats.json").exists()


def test_without_the_extra_the_command_names_it(write_rows, tiny_model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    assert train_by_trl("missing.parquet", tiny_model_dir, tmp_path / "rm") == 2
    assert 'pip install "verl-aiops[trl]"' in capsys.readouterr().err


def test_one_process_trains(write_rows, tiny_model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "rm"
    assert train_by_trl(write_rows([row(at) for at in range(24)]), tiny_model_dir, out, "--val-share", "0.3") == 2
    assert "started by a distributed launcher" in capsys.readouterr().err and not out.exists()


def test_the_learning_rate_is_smaller_without_lora(monkeypatch):
    from verl_aiops.trl import reward

    seen = []

    class Done:
        def summary(self):
            return ""

    monkeypatch.setattr(reward, "train_reward_model", lambda given, *_, **__: (seen.append(given), Done())[1])
    for more in ([], ["--no-lora"], ["--lora-rank", "0"], ["--lora-rank", "0", "--lr", "2e-4"]):
        assert train_by_trl("a", "b", "c", *more) == 0
    assert [(given.lr, given.lora_rank) for given in seen] == [(1e-4, 16), (1e-5, 0), (1e-5, 0), (2e-4, 0)]
