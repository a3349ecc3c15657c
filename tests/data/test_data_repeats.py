"""Pairs that stand twice, contradict each other, weigh nothing, are trained on though held out, or never trained on."""

import logging

import numpy as np
import pytest
from omegaconf import OmegaConf

from verl_aiops.data import PreferenceDataError, PreferenceDataset
from verl_aiops.data.repeats import count_repeats, count_shared, count_untrained
from verl_aiops.trainers.config import DPOConfig
from verl_aiops.trainers.dpo.pairs import data_lines, load_pairs, pair_order


def _row(prompt, chosen, rejected, **more):
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        **more,
    }


ROWS = [
    _row("one?", "a", "b", id="1"),
    _row("one?", "b", "a", id="2"),  # against the first
    _row("two?", "a", "b", id="3"),
    _row("two?", "a", "b", id="3"),  # again
    _row("two?", "a", "c", id="4"),  # another answer is no contradiction
    _row("three?", "b", "a", id="1"),  # nor is another prompt
]
COUNTS = {"duplicate": 1, "contradicting": 2, "same_id": 2}


def _dataset(file, tokenizer, **settings):
    return PreferenceDataset(file, tokenizer, max_prompt_length=None, max_response_length=None, **settings)


def test_repeats_are_counted_and_said_and_all_rows_kept(tokenizer, write_rows, caplog):
    caplog.set_level(logging.WARNING)
    pairs = _dataset(write_rows(ROWS), tokenizer, progress=False)
    assert len(pairs) == 6
    assert {kind: pairs.report.notes.get(kind) for kind in COUNTS} == COUNTS
    assert "2 of 6 pairs: another pair of the same prompt prefers the answer" in caplog.text
    assert "1 of 6 pairs: prompt and answers are those of a pair before" in caplog.text


def test_they_are_said_of_data_from_the_cache_too(tokenizer, write_rows, tmp_path, caplog):
    for _ in range(2):
        caplog.clear()
        pairs = _dataset(write_rows(ROWS), tokenizer, cache_dir=str(tmp_path / "cache"))
        assert {kind: pairs.report.notes.get(kind) for kind in COUNTS} == COUNTS
        assert "2 of 6 pairs: the id is that of a row before" in caplog.text


def test_the_reward_models_reader_counts_the_same(tokenizer, write_rows):
    from verl_aiops.trl.reward_data import read_reward_pairs

    pairs = read_reward_pairs(write_rows(ROWS), tokenizer, 512)
    assert {kind: pairs.notes.get(kind) for kind in COUNTS} == COUNTS
    assert pairs.shared_with(pairs) == 6


def test_rows_that_differ_and_have_no_ids_are_not_noted(tokenizer, write_rows):
    pairs = _dataset(write_rows([_row(f"{n}?", "a", "b") for n in range(5)]), tokenizer)
    assert not set(COUNTS) & set(pairs.report.notes)


def test_the_border_between_prompt_and_answer_counts():
    assert count_repeats([("a", "b"), ("b", "a"), ("c", "c")], [None, "x", "x"]) == {
        "contradicting": 3,
        "same_id": 1,
    }


def _data(file, **more):
    data = {"train_files": file, "val_files": None, "max_prompt_length": 64, "max_response_length": 64}
    data |= {"truncation": "error", "shuffle": True, "seed": 3, "train_batch_size": 4}
    return OmegaConf.create(data | {"apply_chat_template_kwargs": None} | more)


def test_weights_of_zero_are_counted_and_nothing_but_them_refused(tokenizer, write_rows, caplog):
    some = [_row(f"{n}?", "a", "b", weight=float(n > 2)) for n in range(6)]
    assert load_pairs(_data(write_rows(some, "some.jsonl")), tokenizer, "train").report.notes["no_weight"] == 3
    assert "3 of 6 pairs: the weight is 0" in caplog.text
    none = _data(write_rows([row | {"weight": 0} for row in some], "none.jsonl"))
    for limit in (None, 100):
        with pytest.raises(PreferenceDataError, match="data.train_files: all 6 pairs have the weight 0"):
            load_pairs(none, tokenizer, "train", limit=limit)
    # the rows after those that were looked at may weigh something
    assert len(load_pairs(none, tokenizer, "train", limit=2)) == 2


def test_pairs_that_no_step_trains_and_held_out_pairs_that_are_trained(tokenizer, write_rows):
    rows = [_row(f"{n}?", "a", "b") for n in range(10)]
    held = _data(write_rows(rows, "t.jsonl"), val_files=write_rows([*rows[:3], _row("x?", "a", "b")], "v.jsonl"))
    train, val = (load_pairs(held, tokenizer, split) for split in ("train", "val"))
    order = pair_order(train, held)
    left, shared = data_lines(train, val, order, 2)
    assert left == "2 of 10 training pairs are in none of the 2 steps of 4 pairs (an epoch has 2 steps)"
    assert shared.startswith("warning: 3 of 4 held-out pairs are trained on")
    trained = len(np.unique(np.concatenate([order.step(step) for step in range(1, 6)])))
    expected = [] if trained == 10 else [f"{10 - trained} of 10 training pairs are in none of the 5 steps of 4 pairs"]
    assert [line.partition(" (an")[0] for line in data_lines(train, None, order, 5)] == expected


def test_examples_are_called_by_their_kind(tokenizer, write_rows):
    def lines(*rows):
        data = _data(write_rows(rows, f"{len(rows)}.jsonl"))
        examples = load_pairs(data, tokenizer, "train", dpo=DPOConfig(loss_type=["sigmoid", "kto"]))
        return data_lines(examples, examples, pair_order(examples, data), 0)

    yes = [{"prompt": f"{n}!", "completion": "a", "label": True} for n in range(5)]
    left, shared = lines(*yes)
    assert left.startswith("5 of 5 training single answers are in none of the 0 steps of 4 single answers (an")
    assert shared.startswith("warning: 5 of 5 held-out single answers are trained on")
    assert lines(*yes, _row("x?", "a", "b"))[0].startswith("6 of 6 training examples are in none")


@pytest.mark.parametrize(
    "pairs, batch, steps, untrained", [(10, 4, 2, 2), (10, 4, 1, 6), (8, 4, 2, 0), (10, 5, 3, 0), (3, 4, 2, 3)]
)
def test_untrained_pairs_of_an_order_that_stays(pairs, batch, steps, untrained):
    assert count_untrained(pairs, batch, steps, lambda epoch: np.arange(pairs)) == untrained


def test_epochs_of_another_order_reach_what_one_leaves():
    assert count_untrained(10, 4, 4, lambda epoch: np.roll(np.arange(10), 5 * epoch)) == 0
    assert count_untrained(10, 4, 3, lambda epoch: np.roll(np.arange(10), 5 * epoch)) == 1
    assert count_shared("abca", "xab") == 3
