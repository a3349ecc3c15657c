"""Tokenised data kept on disk: the same data set, and never a stale one."""

import copy
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from verl_aiops.data import PreferenceDataError, PreferenceDataset
from verl_aiops.data import dataset as preference
from verl_aiops.data import token_cache as cache

ROWS = [
    {"prompt": f"disk {i} is full?", "chosen": f"yes {i}", "rejected": "no", "group": f"g{i % 2}", "weight": 0.5 + i}
    for i in range(5)
] + [{"prompt": "word " * 90, "chosen": "a", "rejected": "b", "id": "long"}]


def load(file, tokenizer, folder, **settings):
    arguments = {"max_prompt_length": 40, "max_response_length": 40, "truncation": "drop", "progress": False}
    return PreferenceDataset(file, tokenizer, cache_dir=str(folder), **(arguments | settings))


@pytest.fixture
def renders(monkeypatch):
    """How many batches were rendered and tokenised."""
    calls = []
    encode = preference.PairRenderer.encode
    monkeypatch.setattr(
        preference.PairRenderer, "encode", lambda self, rows: calls.append(len(rows)) or encode(self, rows)
    )
    return calls


def same(one, other):
    assert len(one) == len(other) and one.report == other.report and one.identity() == other.identity()
    for left, right in zip(one, other):
        assert left.keys() == right.keys()
        for key in left:
            assert torch.equal(left[key], right[key]) if torch.is_tensor(left[key]) else left[key] == right[key], key
    assert np.array_equal(one.lengths, other.lengths)


def test_the_second_time_is_read_and_equal(tmp_path, tokenizer, write_rows, renders):
    file = write_rows(ROWS)
    first = load(file, tokenizer, tmp_path / "cache")
    assert renders == [6]
    second = load(file, tokenizer, tmp_path / "cache")
    assert renders == [6]
    same(first, second)
    assert second.report.dropped == {"prompt_too_long": 1, "answer_too_long": 0}
    same(first, PreferenceDataset(file, tokenizer, max_prompt_length=40, max_response_length=40, truncation="drop"))


def test_whatever_decides_about_the_tokens_misses_the_cache(tmp_path, tokenizer, write_rows, renders):
    file = write_rows(ROWS)
    other_template, other_token = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    other_template.chat_template += " "
    other_token.add_tokens(["disk"])
    changes = [
        (file, tokenizer, {}),
        (file, tokenizer, {"max_prompt_length": 39}),
        (file, tokenizer, {"max_response_length": None}),
        (file, tokenizer, {"truncation": "left"}),
        (file, tokenizer, {"limit": 3}),
        (file, tokenizer, {"limit": 3, "seed": 1}),
        (file, tokenizer, {"chosen_key": "rejected", "rejected_key": "chosen"}),
        (file, tokenizer, {"chat_template": "{{ messages }}"}),
        (file, tokenizer, {"apply_chat_template_kwargs": {"enable_thinking": False}}),
        (file, other_template, {}),
        (file, other_token, {}),
        (write_rows(ROWS[::-1], "reversed.jsonl"), tokenizer, {}),
        (write_rows(ROWS, "other_name.jsonl"), tokenizer, {}),  # rows without an id are named after their file
        ([file, file], tokenizer, {}),
    ]
    for number, (files, its_tokenizer, settings) in enumerate(changes, 1):
        load(files, its_tokenizer, tmp_path / "cache", **settings)
        assert len(list((tmp_path / "cache").iterdir())) == number, (files, settings)
    rendered = len(renders)
    for files, its_tokenizer, settings in changes:
        load(files, its_tokenizer, tmp_path / "cache", **settings)
    assert len(renders) == rendered


@pytest.mark.parametrize("rule", ["data/rows.py", "inputs/json_text.py", "reasoning.py"])
def test_the_rules_of_this_package_are_part_of_the_key(tmp_path, tokenizer, write_rows, monkeypatch, rule):
    file, package = write_rows(ROWS), tmp_path / "verl_aiops"
    shutil.copytree(Path(cache.__file__).parents[1], package)
    monkeypatch.setattr(cache, "__file__", str(package / "data" / "token_cache.py"))
    load(file, tokenizer, tmp_path / "cache")
    load(file, tokenizer, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    with open(package / rule, "a") as source:
        source.write("# other rules")
    load(file, tokenizer, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_faults_are_raised_every_time_and_leave_nothing(tmp_path, tokenizer, write_rows):
    file = write_rows([*ROWS, {"prompt": "", "chosen": "a", "rejected": "b"}])
    for _ in range(2):
        with pytest.raises(PreferenceDataError, match="prompt is empty"):
            load(file, tokenizer, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    with pytest.raises(PreferenceDataError, match="does not exist"):
        load(str(tmp_path / "none.jsonl"), tokenizer, tmp_path / "cache")


def test_a_damaged_file_is_replaced_with_a_warning(tmp_path, tokenizer, write_rows, renders, caplog):
    file = write_rows(ROWS)
    first = load(file, tokenizer, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:200])
    with caplog.at_level(logging.WARNING):
        same(first, load(file, tokenizer, tmp_path / "cache"))
    assert "cannot be read" in caplog.text and str(path) in caplog.text
    renders.clear()
    load(file, tokenizer, tmp_path / "cache")
    assert renders == []


def test_no_flipped_bit_gives_other_tokens(tmp_path, tokenizer, write_rows, renders):
    """Not in the zip's directory or numpy's headers either, whose names, types and lengths no sum of the zip covers."""
    file = write_rows(ROWS[:2])
    first = load(file, tokenizer, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    content = path.read_bytes()
    places = range(0, len(content), 5)
    renders.clear()
    for at in places:
        bad = bytearray(content)
        bad[at] ^= 1 << at // 5 % 8
        path.write_bytes(bad)
        same(first, load(file, tokenizer, tmp_path / "cache"))
    assert len(renders) > len(places) / 2  # the rest: what no reader looks at, as a date


def test_a_shorter_array_is_noticed(tmp_path, tokenizer, write_rows, renders):
    """A whole zip with sums of its own, and other content: numpy's header may name fewer numbers than there are."""
    file = write_rows(ROWS)
    first = load(file, tokenizer, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    with np.load(path) as saved:
        arrays = dict(saved)
    arrays["weights"] = arrays["weights"] + 1
    np.savez(path, **arrays)
    same(first, load(file, tokenizer, tmp_path / "cache"))
    assert len(renders) == 2


def test_a_place_that_cannot_be_written_is_only_a_warning(tmp_path, tokenizer, write_rows, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert len(load(write_rows(ROWS), tokenizer, tmp_path / "cache")) == 5
    assert "cannot be written" in caplog.text


def test_the_warning_about_the_data_comes_from_the_cache_too(tmp_path, tokenizer, write_rows, caplog):
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>assistant\n", "<|im_start|>assistant\nthink")
    rows = [
        {
            "prompt": [{"role": "user", "content": "why"}],
            "chosen": [{"role": "assistant", "content": "disk"}],
            "rejected": [{"role": "assistant", "content": "cpu"}],
        }
    ]
    file = write_rows(rows)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            load(file, tokenizer, tmp_path / "cache")
        assert "1 of 1 pairs: the prompt's last tokens" in caplog.text


def test_slow_tokenizers_are_not_cached(tmp_path, tokenizer, write_rows):
    class Slow:
        """Everything but what a digest could be taken of."""

        backend_tokenizer = None

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, *args, **kwargs):
            return tokenizer(*args, **kwargs)

    assert len(load(write_rows(ROWS), Slow(), tmp_path / "cache")) == 5
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("package", ["transformers", "tokenizers", "jinja2"])
def test_another_release_of_a_package_that_renders_or_tokenises_misses_the_cache(
    tmp_path, tokenizer, write_rows, renders, monkeypatch, package
):
    file = write_rows(ROWS)
    load(file, tokenizer, tmp_path / "cache")
    version = cache.importlib.metadata.version
    monkeypatch.setattr(
        cache.importlib.metadata, "version", lambda name: version(name) + ("+" if name == package else "")
    )
    for _ in range(2):
        load(file, tokenizer, tmp_path / "cache")
    assert len(renders) == 2 and len(list((tmp_path / "cache").iterdir())) == 2
