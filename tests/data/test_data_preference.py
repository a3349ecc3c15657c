"""The preference data set as a trainer sees it: items, limits on length, report, digests."""

import ast
import hashlib
import logging
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import verl_aiops.data
from verl_aiops.data import PreferenceDataError, PreferenceDataset
from verl_aiops.data.storage import Ragged


def text(prompt="Which?", chosen="db", rejected="dns", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | more


@pytest.fixture
def load(tokenizer, write_rows):
    def load(rows, **options):
        options = {"max_prompt_length": 64, "max_response_length": 32, "progress": False} | options
        return PreferenceDataset(write_rows(rows), tokenizer, **options)

    return load


# In runs of "x" each letter is a token, so lengths can be chosen freely.
SHORT, LONG_PROMPT, LONG_ANSWER = text("x" * 8), text("x" * 9), text("x" * 8, "x" * 4)
LIMITS = {"max_prompt_length": 8, "max_response_length": 4}


@pytest.fixture(autouse=True)
def _one_token_a_letter(tokenizer):
    for letters in ("x" * 8, "x" * 9, "x" * 4, "db"):
        assert len(tokenizer(letters)["input_ids"]) == len(letters)


# ---- items


def test_item_layout(load, tokenizer):
    data = load([text(id="a", group="g", weight=2), text("x", "y", "z")])
    item = data[0]
    assert set(item) == {
        *("prompt_ids", "chosen_ids", "rejected_ids", "chosen_mask", "rejected_mask"),
        *("weight", "index", "id", "group"),
        *("kind", "margin", "prompt_number", "answer_numbers"),
    }
    assert (item["kind"], item["margin"]) == ("pair", 0.0)
    for name, value in item.items():
        if name.endswith(("_ids", "_mask")):
            assert value.dtype == torch.int64 and value.ndim == 1
    assert item["chosen_ids"].tolist() == tokenizer("db<|im_end|>")["input_ids"]
    assert item["chosen_mask"].shape == item["chosen_ids"].shape
    assert item["rejected_mask"].shape == item["rejected_ids"].shape
    assert (item["weight"], item["index"], item["id"], item["group"]) == (2.0, 0, "a", "g")
    assert len(data) == 2 and data[-1]["index"] == 1
    with pytest.raises(IndexError):
        data[2]


def test_changing_an_item_leaves_the_data_alone(load):
    data = load([text()])
    before = data.identity()
    data[0]["chosen_ids"].zero_()
    assert data[0]["chosen_ids"].any() and load([text()]).identity() == before


def test_lengths(load):
    data = load([text("x" * 5), text("x" * 7)])
    assert data.lengths.tolist() == [
        [len(item["prompt_ids"]), len(item["chosen_ids"]), len(item["rejected_ids"])] for item in data
    ]


def test_loader_and_pickle(load):
    data = load([text("x" * at) for at in range(1, 8)])
    batches = list(DataLoader(data, batch_size=3, collate_fn=list))
    assert [[item["index"] for item in batch] for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [len(item["prompt_ids"]) for item in batches[1]] == [4, 5, 6]
    copy = pickle.loads(pickle.dumps(data))
    assert copy.identity() == data.identity() and len(copy[0]["prompt_ids"]) == 1


@given(st.lists(st.lists(st.integers(0, 2**31 - 1))))
@settings(deadline=None, max_examples=50)
def test_ragged_gives_back_what_was_put_in(rows):
    ragged = Ragged("i")
    for row in rows:
        ragged.append(row)
    ragged.freeze()
    assert [ragged[at].tolist() for at in range(len(rows))] == rows
    assert ragged.lengths().tolist() == [len(row) for row in rows]


# ---- too long


def test_rows_at_the_limit_fit(load):
    assert len(load([SHORT], **LIMITS)) == 1


def test_too_long_is_an_error_that_counts_and_names_the_knobs(load):
    with pytest.raises(PreferenceDataError) as caught:
        load([SHORT, LONG_PROMPT, *[LONG_ANSWER] * 7, SHORT], **LIMITS)
    message = str(caught.value)
    assert message.startswith("8 of 10 rows are too long:")
    assert "line 2: prompt 9 tokens (limit 8), chosen" in message and "... and 3 more" in message
    assert "line 3: prompt 8 tokens (limit 8), chosen 5, rejected" in message and "(limit 4)" in message
    assert "longest prompt has 9 tokens, the longest answer 5" in message
    for knob in ("data.max_prompt_length", "data.max_response_length", "data.truncation=left", "data.truncation=drop"):
        assert knob in message


def test_unusable_and_too_long_rows_are_told_together(load):
    with pytest.raises(PreferenceDataError) as caught:
        load([LONG_PROMPT, text(chosen="")], **LIMITS)
    message = str(caught.value)
    assert "1 of 2 rows cannot be used:" in message and "1 of 2 rows are too long:" in message


def test_left_cuts_the_beginning_of_prompts(load, tokenizer):
    prompt = "abcdefghijkl"
    data = load([text(prompt), SHORT], **LIMITS, truncation="left")
    assert data[0]["prompt_ids"].tolist() == tokenizer(prompt)["input_ids"][-8:]
    assert data[0]["chosen_ids"].tolist() == data[1]["chosen_ids"].tolist()
    assert (data.report.prompts_cut, data.report.kept, sum(data.report.dropped.values())) == (1, 2, 0)


@pytest.mark.parametrize("limit", [1, 2, 8])
def test_left_keeps_a_beginning_of_sequence_token(load, tokenizer, limit):
    tail = "abcdefghijkl"
    data = load([text("<|im_start|>" + tail)], max_prompt_length=limit, truncation="left")
    kept = tokenizer(tail)["input_ids"]
    assert data[0]["prompt_ids"].tolist() == [tokenizer.bos_token_id, *kept[len(kept) - limit + 1 :]]


def test_left_never_cuts_answers(load):
    with pytest.raises(PreferenceDataError) as caught:
        load([SHORT, LONG_PROMPT, LONG_ANSWER], **LIMITS, truncation="left")
    message = str(caught.value)
    assert message.startswith("1 of 3 rows are too long:") and "line 3:" in message
    assert "data.truncation=drop" in message and "truncation=left" not in message


def test_drop_leaves_rows_out_and_counts_them_by_reason(load):
    both = text("x" * 9, "x" * 4)
    data = load([LONG_PROMPT, SHORT | {"id": "kept"}, LONG_ANSWER, both], **LIMITS, truncation="drop")
    assert [(item["id"], item["index"]) for item in data] == [("kept", 0)]
    assert data.report.dropped == {"prompt_too_long": 2, "answer_too_long": 1}
    assert (data.report.rows, data.report.kept) == (4, 1)
    assert str(data.report) == "1 of 4 pairs kept, 2 dropped (prompt too long), 1 dropped (answer too long)"


def test_drop_still_refuses_unusable_rows(load):
    with pytest.raises(PreferenceDataError, match="chosen is empty"):
        load([SHORT, text(chosen="")], truncation="drop")


def test_dropping_every_row_is_an_error(load):
    with pytest.raises(PreferenceDataError, match=r"no pair is left: 0 of 2 pairs kept, 2 dropped \(prompt too long\)"):
        load([LONG_PROMPT] * 2, **LIMITS, truncation="drop")


def test_no_limits(load):
    assert len(load([text("x" * 5000, "y" * 5000)], max_prompt_length=None, max_response_length=None)) == 1


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 12), min_size=1), st.integers(1, 12))
def test_left_and_drop_keep_what_they_promise(load, sizes, limit):
    rows = [text("x" * size, id=str(at)) for at, size in enumerate(sizes)]
    cut = load(rows, max_prompt_length=limit, truncation="left")
    assert cut.lengths[:, 0].tolist() == [min(size, limit) for size in sizes]
    fitting = [str(at) for at, size in enumerate(sizes) if size <= limit]
    if fitting:
        kept = load(rows, max_prompt_length=limit, truncation="drop")
        assert [item["id"] for item in kept] == fitting
        assert kept.report.dropped["prompt_too_long"] == len(sizes) - len(fitting)


# ---- arguments


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"truncation": "right"}, "data.truncation='right' is none of error, left, drop"),
        ({"max_prompt_length": 0}, "max_prompt_length=0: at least 1"),
        ({"max_response_length": -1}, "max_response_length=-1: at least 1"),
        ({"limit": 0}, "limit=0: at least 1"),
        ({"apply_chat_template_kwargs": {"tokenize": True}}, "may not hold tokenize"),
    ],
)
def test_arguments_out_of_range(load, options, expected):
    with pytest.raises(ValueError, match=expected):
        load([SHORT], **options)


def test_chat_template_and_its_arguments(load, tokenizer):
    row = {"prompt": [{"role": "user", "content": "x"}], "chosen": "db", "rejected": "dns"}
    data = load([row], chat_template="{{ note }}" + tokenizer.chat_template, apply_chat_template_kwargs={"note": "N"})
    assert tokenizer.decode(data[0]["prompt_ids"]).startswith("N<|im_start|>user")


# ---- what is said besides


def test_changed_prompt_ends_and_appended_ends_are_reported(load, tokenizer, caplog):
    row = {"prompt": [{"role": "user", "content": "x"}], "chosen": "db", "rejected": "dns"}
    template = "{% for m in messages %}{{ m.content }};{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    with caplog.at_level(logging.WARNING, "verl_aiops"):
        data = load([row, row | {"rejected": "dhcp"}], chat_template=template)
    assert tokenizer.decode(data[0]["prompt_ids"]) == "x;"
    assert tokenizer.decode(data[0]["chosen_ids"]) == "db;<|im_end|>"
    assert (data.report.prompt_end_changed, data.report.eos_appended) == (2, 2)
    assert len(caplog.records) == 1 and "2 of 2 pairs" in caplog.text


def test_progress_bar_goes_to_stderr(load, capsys):
    load([text()] * 3, progress=True)
    out, err = capsys.readouterr()
    assert not out and "preference pairs" in err and "3/3" in err


def test_the_package_stands_alone():
    """It must be usable without verl, and importable where transformers is slow to load or absent."""
    imported = set()
    for file in Path(verl_aiops.data.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
    # files.py and reasoning.py need the standard library alone, inputs nothing heavy (tests/test_architecture.py)
    ours = {
        name
        for name in imported
        if name.startswith(("verl_aiops.data.", "verl_aiops.inputs."))
        or name in ("verl_aiops.files", "verl_aiops.reasoning")
    }
    others = {name.split(".")[0] for name in imported - ours} - sys.stdlib_module_names
    assert others <= {"numpy", "pyarrow", "torch", "tqdm"}


# ---- digests


def test_digests_are_of_content_alone(load):
    a, b = text("x", id="1", group="g", weight=3), text("y")
    first, second = load([a, b, text("x")]), load([b, a])
    digests = first.row_digests()
    assert digests.shape == (3, 32) and digests.dtype == np.uint8
    assert (digests[0] == digests[2]).all() and (digests[0] != digests[1]).any()
    assert (first.row_digests()[:2] == second.row_digests()[::-1]).all()
    assert first.identity() != second.identity() == load([b, a]).identity()


def test_digests_change_with_everything_the_model_sees(load, tokenizer):
    talk = {"prompt": [{"role": "user", "content": "x" * 12}], "chosen": "db", "rejected": "dns"}
    plain = load([talk])
    others = [
        load([talk | {"rejected": "ssd"}]),
        load([talk | {"chosen": "dns", "rejected": "db"}]),
        load([talk], max_prompt_length=8, truncation="left"),
        load([talk], chat_template="-" + tokenizer.chat_template),
    ]
    assert len({data.identity() for data in (plain, *others)}) == 5


def test_digests_tell_borders_and_masks_apart(load):
    """The same tokens in a row, cut at another place, are another pair."""
    assert load([text("xx", "y", "z")]).identity() != load([text("x", "xy", "xz")]).identity()
    data, masked = load([text()]), load([text()])
    mask = masked._store.answers.masks
    mask.values = 1 - mask.values
    assert data.identity() != masked.identity()


def test_digest_is_stable(load):
    """Reference log-probs on disk are found by these digests: changing how they are made loses every cache."""
    data = load([text()])
    item = data[0]
    parts = [item[f"{part}_ids"].tolist() for part in ("prompt", "chosen", "rejected")]
    sizes = [len(part) for part in parts]
    tokens = [token for part in parts for token in part]
    masks = [1] * (sizes[1] + sizes[2])
    content = struct.pack(f"<3q{len(tokens)}i{len(masks)}B", *sizes, *tokens, *masks)
    assert data.row_digests()[0].tobytes() == hashlib.sha256(content).digest()
