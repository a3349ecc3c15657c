"""`verl-aiops train-rm`: what the model reads, what it learns, what is written, and what is refused."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("trl")
pytest.importorskip("peft")

from tiny import make_tiny_model, make_tokenizer
from trl_rm_harness import train_by_trl

from verl_aiops.data.errors import PreferenceDataError
from verl_aiops.data.scoring import conversation, scoring_ids, scoring_text
from verl_aiops.evaluation.stats.calibration import calibrate, plot_calibration
from verl_aiops.trl.extra import TrainingError, prepare_folder
from verl_aiops.trl.reward import RewardTraining, train_reward_model
from verl_aiops.trl.reward_data import read_reward_pairs, split_by_group


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("small"), hidden=16, layers=1)


def talk(at, word):
    """Two rounds; which of two words ends the last answer is all that tells right from wrong."""
    return {
        "prompt": [
            {"role": "user", "content": f"logs {at}"},
            {"role": "assistant", "content": "disk"},
            {"role": "user", "content": "now JSON"},
        ],
        "chosen": [{"role": "assistant", "content": f'{{"service": "s{at % 7}", "incident_type": "{word[0]}"}}'}],
        "rejected": [{"role": "assistant", "content": f'{{"service": "s{at % 7}", "incident_type": "{word[1]}"}}'}],
        "group": f"g{at // 2}",
    }


@pytest.fixture
def pairs(tmp_path):
    def write(rows=None, name="pairs.parquet", count=64, **columns):
        rows = rows or [{**talk(at, ("full", "none")), **columns} for at in range(count)]
        path = tmp_path / name
        pq.write_table(pa.Table.from_pylist(rows), path)
        return str(path)

    return write


def settings(data, model, **given):
    quick = {"lr": 1e-2, "batch_size": 8, "lora_rank": 4, "lora_alpha": 8, "val_share": 0.25, "device": "cpu"}
    return RewardTraining(data=(data,), model=str(model), **(quick | given))


# --- what the model reads --------------------------------------------------------------------------------------------


def test_both_sides_are_read_as_they_are_scored(pairs):
    tokenizer = make_tokenizer()
    read = read_reward_pairs(pairs(count=3), tokenizer, 4000)
    row = talk(1, ("full", "none"))
    turns = ["disk", row["chosen"][0]["content"]]
    text = scoring_text(tokenizer, conversation(row["prompt"][:1], turns, ["now JSON"]))
    assert read.chosen_ids[1] == scoring_ids(tokenizer, text)
    assert read.rejected_ids[1] != read.chosen_ids[1] and read.margins is None and len(read) == 3


def test_plain_texts_are_one_users_and_one_assistants_message(pairs):
    tokenizer = make_tokenizer()
    read = read_reward_pairs(pairs([{"prompt": "why?", "chosen": "so", "rejected": "no"}]), tokenizer, 4000)
    messages = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]
    assert read.chosen_ids == [scoring_ids(tokenizer, scoring_text(tokenizer, messages))]


def test_the_ids_that_reach_the_model_are_those(pairs, small_model, tmp_path, monkeypatch):
    from transformers import LlamaForSequenceClassification

    seen, forward = [], LlamaForSequenceClassification.forward

    def spy(self, input_ids=None, attention_mask=None, **kwargs):
        seen.extend(ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask))
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(LlamaForSequenceClassification, "forward", spy)
    data = pairs(count=24)
    train_reward_model(settings(data, small_model), str(tmp_path / "rm"))
    read = read_reward_pairs(data, make_tokenizer(), 4000)
    known = {tuple(ids) for ids in (*read.chosen_ids, *read.rejected_ids)}
    assert {tuple(ids) for ids in seen} == known


def test_groups_stay_on_one_side(pairs):
    read = read_reward_pairs(pairs(count=80), make_tokenizer(), 4000)
    train, held_out = split_by_group(read, 0.3, 0)
    assert len(train) + len(held_out) == 80 and not set(train.groups) & set(held_out.groups)
    with pytest.raises(PreferenceDataError, match="leaves 80 pairs to train on and 0 to hold out"):
        split_by_group(read, 0.0, 0)


def test_long_pairs_are_left_out_and_counted_up_to_a_share(pairs):
    rows = [talk(at, ("full", "none")) for at in range(10)]
    rows[3]["chosen"][0]["content"] += " x" * 500
    data = pairs(rows)
    read = read_reward_pairs(data, make_tokenizer(), 200, max_too_long_share=0.1)
    assert (len(read), read.too_long, read.rows) == (9, 1, 10)
    with pytest.raises(PreferenceDataError, match="1 of 10 pairs are longer than 200 tokens .the longest has"):
        read_reward_pairs(data, make_tokenizer(), 200, max_too_long_share=0.05)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"chosen": talk(0, "ab")["rejected"]}, "chosen and rejected are equal"),
        ({"weight": 2.0}, "reward training knows no weights"),
        ({"margin": -1.0}, "margin=-1.0: expected a number, 0 or more"),
        ({"chosen": None}, "chosen is null"),
    ],
)
def test_faulty_rows_are_named(pairs, changes, said):
    rows = [talk(at, "ab") for at in range(3)]
    rows[0] |= changes
    with pytest.raises(PreferenceDataError, match=f"pairs.parquet, row 0 .*{said}"):
        read_reward_pairs(pairs(rows), make_tokenizer(), 4000)


def test_groups_are_told_where_they_are_taken(pairs, tmp_path):
    group = {"prompt": "?", "completions": [{"completion": "a", "rank": 1}, {"completion": "b", "rank": 2}]}
    file = tmp_path / "groups.jsonl"
    for before in ([], [talk(0, "ab")]):
        file.write_text("".join(json.dumps(row) + "\n" for row in [*before, group]))
        with pytest.raises(PreferenceDataError, match="ranked answers, and TRL's trainer takes pairs alone; leave"):
            read_reward_pairs([str(file)], make_tokenizer(), 4000)
    # a column that the pairs do not use
    assert len(read_reward_pairs(pairs([{**talk(0, "ab"), "completions": ["x"]}]), make_tokenizer(), 4000)) == 1


def test_a_margin_for_some_rows_only_is_refused(pairs):
    rows = [talk(at, "ab") for at in range(3)]
    rows[0]["margin"] = 1.0
    with pytest.raises(PreferenceDataError, match="margin: all rows have one or none has"):
        read_reward_pairs(pairs(rows), make_tokenizer(), 4000)


# --- what it learns --------------------------------------------------------------------------------------------------


def rewards_of(folder, ids):
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return [model(input_ids=torch.tensor([one])).logits.item() for one in ids]


@pytest.mark.parametrize("rank", [4, 0])
def test_what_can_be_told_apart_is_learnt_and_written_whole(pairs, small_model, tmp_path, rank):
    data, out = pairs(count=96), tmp_path / "rm"
    result = train_reward_model(settings(data, small_model, lora_rank=rank, epochs=3), str(out))
    assert result.after.accuracy == 1.0 and result.after.log_loss < 0.5 * result.before.log_loss
    assert (out / "adapter").is_dir() == (rank > 0) and not (out / ".partial").exists()
    # the written folder, opened as any server opens it, gives the rewards that were measured
    _, held_out = split_by_group(read_reward_pairs(data, make_tokenizer(), 2048), 0.25, 0)
    chosen, rejected = rewards_of(out, held_out.chosen_ids), rewards_of(out, held_out.rejected_ids)
    stats = json.loads((out / "reward_stats.json").read_text())
    assert stats["reward_mean"] == pytest.approx(np.mean(chosen + rejected), abs=1e-4)
    assert stats["reward_std"] == pytest.approx(np.std(chosen + rejected), abs=1e-4)
    assert stats["pairs"] == len(held_out) and stats["accuracy"] == np.mean(np.greater(chosen, rejected))
    assert stats["accuracy_low"] < stats["accuracy"] <= stats["accuracy_high"] + 1e-9
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and config["pad_token_id"] is not None
    assert len((out / "train_log.jsonl").read_text().splitlines()) > 5


def losses_of(folder):
    lines = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def first_loss(pairs, small_model, folder, rows=None, **given):
    train_reward_model(settings(pairs(rows), small_model, lr=1e-9, lora_rank=0, **given), str(folder))
    return losses_of(folder)


def test_margin_and_centring_enter_the_loss_as_their_formulas_say(pairs, small_model, tmp_path):
    """At a learning rate of nothing the same batches have the same rewards, with and without."""
    plain = first_loss(pairs, small_model, tmp_path / "a", center=None)
    assert plain[0] == pytest.approx(math.log(2), abs=0.4)
    with_margin = first_loss(pairs, small_model, tmp_path / "b", center=None, margin=2.0)
    column = [{**talk(at, ("full", "none")), "margin": 2.0} for at in range(64)]
    as_column = first_loss(pairs, small_model, tmp_path / "c", rows=column, center=None)
    assert all(b > a + 0.5 for a, b in zip(plain, with_margin))
    assert with_margin == pytest.approx(as_column, abs=1e-6)
    centred = first_loss(pairs, small_model, tmp_path / "d", center=0.5)
    log = (tmp_path / "d" / "train_log.jsonl").read_text().splitlines()
    means = [json.loads(line)["mean_reward"] for line in log if "mean_reward" in line]
    # at least the square of the mean sum of two rewards, by Jensen's inequality
    for a, d, mean in zip(plain, centred, means):
        assert d >= a + 0.5 * (2 * mean) ** 2 - 1e-4


def test_the_same_seed_gives_the_same_model_and_another_does_not(pairs, small_model, tmp_path):
    data = pairs(count=32)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train_reward_model(settings(data, small_model, seed=seed), str(tmp_path / name))
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b") != losses_of(tmp_path / "c")


def test_a_stopped_run_goes_on_to_the_same_end(pairs, small_model, tmp_path):
    from transformers import TrainerCallback

    from verl_aiops.trl import reward

    data = pairs(count=64)
    given = settings(data, small_model, save_steps=2, epochs=2)
    train_reward_model(given, str(tmp_path / "whole"))

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    make = reward._trainer

    def stopping(*args):
        trainer = make(*args)
        trainer.add_callback(Stop())
        return trainer

    reward._trainer = stopping
    try:
        with pytest.raises(KeyboardInterrupt):
            train_reward_model(given, str(tmp_path / "stopped"))
    finally:
        reward._trainer = make
    assert not (tmp_path / "stopped" / "config.json").exists()
    result = train_reward_model(given, str(tmp_path / "stopped"))
    whole, again = losses_of(tmp_path / "whole"), losses_of(tmp_path / "stopped")
    assert again == pytest.approx(whole, rel=1e-5, abs=1e-6)
    stats = [json.loads((tmp_path / name / "reward_stats.json").read_text()) for name in ("whole", "stopped")]
    assert stats[0]["reward_mean"] == pytest.approx(stats[1]["reward_mean"], abs=1e-5)
    assert result.before.log_loss == pytest.approx(stats[0]["log_loss_before"], abs=1e-6)


def test_padding_is_a_token_that_ends_no_conversation(pairs, tmp_path):
    """The template here ends with the padding token; transformers would score the token before it."""
    from tiny import CHATML

    tokenizer = make_tokenizer(chat_template=CHATML.replace("<|im_end|>\n", "<|im_end|>"))
    model = make_tiny_model(tmp_path / "model", tokenizer=tokenizer)
    data, out = pairs(count=48), tmp_path / "rm"
    train_reward_model(settings(data, model, epochs=1), str(out))
    config = json.loads((out / "config.json").read_text())
    assert config["pad_token_id"] != tokenizer.eos_token_id
    read = read_reward_pairs(data, tokenizer, 2048)
    assert read.chosen_ids[0][-1] == tokenizer.eos_token_id
    import torch

    from verl_aiops.rollout.hf.score_model import ScoreModel

    served = ScoreModel(str(out), torch.float32, "cpu")(read.chosen_ids[:4])
    assert served.tolist() == pytest.approx(rewards_of(out, read.chosen_ids[:4]), abs=1e-5)


# --- calibration -----------------------------------------------------------------------------------------------------


def test_calibration_of_margins_whose_probabilities_are_true(tmp_path):
    random = np.random.default_rng(0)
    confidence = random.uniform(0.5, 0.99, 20_000)
    margins = np.log(confidence / (1 - confidence)) * np.where(random.random(20_000) < confidence, 1, -1)
    result = calibrate(margins)
    assert result.error < 0.02 and result.accuracy == pytest.approx(confidence.mean(), abs=0.01)
    entropy = -(confidence * np.log(confidence) + (1 - confidence) * np.log(1 - confidence)).mean()
    assert result.log_loss == pytest.approx(entropy, abs=0.01)
    assert sum(b["pairs"] for b in result.bins) == 20_000
    sure = calibrate(margins * 5)
    assert sure.error > 0.1 and sure.accuracy == result.accuracy


def test_margins_at_the_edges(tmp_path):
    result = calibrate([0.0, 1000.0, -1000.0, 50.0])
    assert result.accuracy == 0.625 and math.isfinite(result.log_loss)
    pytest.importorskip("matplotlib")
    for margins in ([3.0] * 5, [-3.0] * 5, [0.0]):
        plot_calibration(calibrate(margins), tmp_path / "c.png", "model")
        assert (tmp_path / "c.png").stat().st_size > 10_000
    for wrong in ([], [math.nan], [math.inf]):
        with pytest.raises(ValueError, match="expected finite margins"):
            calibrate(wrong)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, said",
    [
        ({"data": "missing.parquet"}, "missing.parquet does not exist"),
        ({"model": "no/such/model"}, "no/such/model: no such folder, and as a name on the hub its tokenizer cannot"),
        ({"more": ["--lr", "0"]}, "--lr 0.0: expected a number above 0"),
        ({"more": ["--val-share", "1.5"]}, "--val-share 1.5: expected a share from 0 to 1"),
        ({"more": ["--max-length", "3"]}, "pairs are longer than 3 tokens"),
        ({"more": ["--lora-rank", "-1"]}, "--lora-rank -1: expected a number, 0 or more"),
    ],
)
def test_bad_input_is_one_clear_message(pairs, small_model, tmp_path, capsys, change, said):
    given = {"data": pairs(count=8), "model": small_model, "more": []} | change
    out = tmp_path / "rm"
    assert train_by_trl(given["data"], given["model"], out, *given["more"]) == 2
    assert said in capsys.readouterr().err and not out.exists()


def test_a_folder_that_cannot_be_used_is_told_before_data_is_read(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("!")
    assert train_by_trl("missing.jsonl", "nowhere", tmp_path) == 2
    assert f"{tmp_path} holds other files" in capsys.readouterr().err


def test_folders_of_other_runs_are_left_alone(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("!")
    with pytest.raises(TrainingError, match="holds other files"):
        prepare_folder(str(other), {"lr": 1}, "done", overwrite=True)
    folder = prepare_folder(str(tmp_path / "run"), {"lr": 1, "seed": 2}, "done", overwrite=False)
    assert prepare_folder(str(folder), {"lr": 1, "seed": 2}, "done", overwrite=False) == folder
    with pytest.raises(TrainingError, match="unfinished run with other settings .lr: 1 then, 2 now"):
        prepare_folder(str(folder), {"lr": 2, "seed": 2}, "done", overwrite=False)
    (folder / "done").write_text("")
    with pytest.raises(TrainingError, match="holds a finished model"):
        prepare_folder(str(folder), {"lr": 1, "seed": 2}, "done", overwrite=False)
    prepare_folder(str(folder), {"lr": 2, "seed": 2}, "done", overwrite=True)
    assert not (folder / "done").exists()


def test_the_command_says_what_to_do_next(pairs, small_model, tmp_path, capsys):
    out = tmp_path / "rm"
    assert train_by_trl(pairs(count=24), small_model, out, "--val-share", "0.3", "--lora-rank", "2") == 0
    said = capsys.readouterr().out
    assert "ranked right" in said and f"reward.reward_model.model_path={out}" in said
