"""Ranked groups and single answers with labels: what is taken, what examples they give, what is refused."""

import json
import logging
import math

import numpy as np
import pytest
import torch

from verl_aiops.data import PreferenceDataError, PreferenceDataset
from verl_aiops.data.answer_store import AnswerStore
from verl_aiops.data.errors import RowFault
from verl_aiops.data.examples import COMPARISONS
from verl_aiops.data.fields import column_keys
from verl_aiops.data.judgements import number_of
from verl_aiops.data.tokens import EncodedRow

ASK = "Which service failed?\n"


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


def group(*texts, prompt=ASK, **more):
    """Completions with ranks 1, 2, ... in their order, or what `more` says."""
    if not {"ranks", "scores"} & set(more):
        more["ranks"] = list(range(1, len(texts) + 1))
    return {"prompt": prompt, "completions": list(texts), **more}


def single(answer="db", label=True, prompt=ASK, **more):
    return {"prompt": prompt, "completion": answer, "label": label, **more}


def pair(chosen="db", rejected="dns", prompt=ASK, **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


@pytest.fixture
def load(tokenizer, write_rows):
    def load(rows, name="rows.jsonl", **options):
        options = {"max_prompt_length": 64, "max_response_length": 64, "progress": False} | options
        files = rows if isinstance(rows, str) or rows and isinstance(rows[0], str) else write_rows(rows, name)
        return PreferenceDataset(files, tokenizer, **options)

    return load


@pytest.fixture
def refusal(load):
    def refusal(rows, name="rows.jsonl", **options):
        with pytest.raises(PreferenceDataError) as caught:
            load(rows, name, **options)
        return str(caught.value)

    return refusal


@pytest.fixture
def read(tokenizer):
    """Function (item) -> its answers as text without their end, in the item's order."""

    def read(item):
        keys = {"pair": ("chosen_ids", "rejected_ids"), "single": ("answer_ids",)}
        ids = item["answers_ids"] if item["kind"] == "list" else [item[key] for key in keys[item["kind"]]]
        return [tokenizer.decode(one).removesuffix("<|im_end|>").removesuffix("<|im_end|>\n") for one in ids]

    return read


# ---- groups


SPELLINGS = {
    "texts beside ranks": group("a", "b", "c", ranks=[2, 1, 3]),
    "texts beside scores": group("a", "b", "c", scores=[0.5, 0.9, -1.0]),
    "objects with content": group(*({"content": t, "rank": r} for t, r in zip("abc", (2, 1, 3)))),
    "objects with text": group({"text": "a", "score": 3}, {"text": "b", "score": 4}, {"text": "c", "score": 2}),
    "UltraFeedback": group(*({"response": t, "score": s, "model": "m"} for t, s in zip("abc", (3.0, 4.0, 2.0)))),
    "ranks and scores": group({"content": "a", "rank": 2, "score": 1.0}, {"content": "b", "rank": 1, "score": 2.0},
                              {"content": "c", "rank": 7, "score": 0.0}),
    "the prompt again": group(ASK + "a", ASK + "b", ASK + "c", ranks=[2, 1, 3]),
}  # fmt: skip
for spelled in SPELLINGS.values():
    if isinstance(spelled["completions"][0], dict):
        del spelled["ranks"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("row", SPELLINGS.values(), ids=SPELLINGS)
def test_a_group_gives_the_pairs_that_its_order_says(load, read, row, suffix):
    data = load([row], f"rows.{suffix}")
    assert [read(item) for item in data] == [["b", "a"], ["b", "c"], ["a", "c"]]
    explicit = load([pair("b", "a"), pair("b", "c"), pair("a", "c")])
    assert data.identity() == explicit.identity()
    assert {item["kind"] for item in data} == {"pair"} and len({item["id"] for item in data}) == 1


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_completions_may_be_messages(load, read, suffix):
    of_messages = {"prompt": user("Which?"), "completions": [
        {"messages": assistant("a"), "score": 1.0}, {"messages": assistant("b"), "score": 2.0}]}  # fmt: skip
    plain = load([pair("b", "a", prompt=user("Which?"))])
    assert load([of_messages], f"m.{suffix}").identity() == plain.identity()
    lists = {"prompt": user("Which?"), "completions": [assistant("a"), assistant("b")], "ranks": [2, 1]}
    assert load([lists], f"l.{suffix}").identity() == plain.identity()
    one_each = {
        "prompt": user("Which?"),
        "completions": [assistant("a")[0] | {"rank": 2}, assistant("b")[0] | {"rank": 1}],
    }
    assert load([one_each], f"o.{suffix}").identity() == plain.identity()
    as_json = {
        "prompt": user("Which?"),
        "completions": [json.dumps(assistant("a")), json.dumps(assistant("b"))],
        "ranks": [2, 1],
    }
    assert load([as_json], f"j.{suffix}").identity() == plain.identity()


def test_comparisons(load, read):
    row = group("a", "b", "c", "d", "e", ranks=[1, 1, 2, 5, 5])

    def pairs(rule):
        return ["".join(read(item)) for item in load([row], comparisons=rule)]

    assert pairs("all") == ["ac", "ad", "ae", "bc", "bd", "be", "cd", "ce"]
    assert pairs("best") == ["ac", "ad", "ae", "bc", "bd", "be"]
    assert pairs("adjacent") == ["ac", "bc", "cd", "ce"]
    assert set(COMPARISONS) == {"all", "best", "adjacent"}


def test_margins_and_gap_weights(load):
    row = group("a", "b", "c", scores=[1.0, 4.0, 3.0], weight=2.0)
    assert [item["margin"] for item in load([row])] == [1.0, 3.0, 2.0]  # b-c, b-a, c-a
    assert [item["weight"] for item in load([row])] == [2.0, 2.0, 2.0]
    assert [item["weight"] for item in load([row], gap_weight=True)] == [1.0, 3.0, 2.0]
    assert [item["margin"] for item in load([group("a", "b")])] == [0.0]


def test_pairs_of_a_file_are_weighted_by_their_margins_over_the_files_mean(load, write_rows):
    one = write_rows([pair(margin=1.0), pair("x", margin=3.0, weight=2.0), group("a", "b", scores=[9, 0])], "one.jsonl")
    two = write_rows([pair("y", "z", score_chosen=8.5, score_rejected=8.0)], "two.parquet")
    data = load([one, two], gap_weight=True)
    assert [(item["margin"], item["weight"]) for item in data] == [(1.0, 0.5), (3.0, 3.0), (9.0, 1.0), (0.5, 1.0)]
    assert [item["weight"] for item in load([one, two])] == [1.0, 2.0, 1.0, 1.0]


def test_a_list_is_best_first_with_its_ranks_and_scores(load, read):
    rows = [group("a", "b", "c", scores=[1.0, 4.0, 1.0]), group("x", "y"), pair()]
    data = load(rows, kinds={"list"})
    assert [read(item) for item in data] == [["b", "a", "c"], ["x", "y"], ["db", "dns"]]
    assert data[0]["ranks"] == [1.0, 2.0, 2.0] and data[0]["scores"] == [4.0, 1.0, 1.0]
    assert data[1]["ranks"] == data[2]["ranks"] == [1.0, 2.0] and all(map(math.isnan, data[1]["scores"]))
    assert [mask.tolist() for mask in data[0]["answers_masks"]] == [[1] * len(ids) for ids in data[0]["answers_ids"]]
    assert data.rows_per_example == 3 and data.kinds.tolist() == ["list"] * 3
    assert data.report.examples == {"list": 3}


def test_ties(load, refusal, caplog):
    caplog.set_level(logging.WARNING)
    data = load([group("a", "b", scores=[1, 1]), group("a", "b", "b", scores=[2, 1, 1]), group("a", "b")])
    assert len(data) == 2 and data.report.dropped["all_answers_tied"] == 1
    assert "1 dropped (all answers tied)" in str(data.report)
    assert data.report.notes["repeated_answer"] == 1 and "the same as another of the same rank" in caplog.text
    assert "no row is left" in refusal([group("a", "b", scores=[1, 1])])
    # once rendered they are the same, and so one answer of the list
    same = load([group("a", "b", "b<|im_end|>", ranks=[1, 2, 2])], kinds={"list"})
    assert len(same[0]["answers_ids"]) == 2 and same[0]["ranks"] == [1.0, 2.0]


def test_fields_that_are_not_read_are_named(load, caplog):
    caplog.set_level(logging.WARNING)
    data = load(
        [
            group({"content": "a", "score": 2, "model": "m"}, {"content": "b", "score": 1, "critique": "c"})
            | {"ranks": None}
        ]
    )
    assert "1 of 1 pairs: these fields of completions are not read: model, critique" in caplog.text
    assert data.report.unused == []
    assert load([group("a", "b", label=True, chosen="x")]).report.unused == ["label", "chosen"]
    assert load([pair(label=True, scores=[1], completion="x")]).report.unused == ["label", "scores", "completion"]


BAD_GROUPS = {
    "null": ({"completions": None}, "completions is null"),
    "no list": ({"completions": "a"}, "completions is of type str; a list of answers is expected"),
    "empty": ({"completions": []}, "completions is empty"),
    "one": ({"completions": ["a"], "ranks": [1]}, "the group has one answer only"),
    "one in truth": ({"completions": ["a", "a"], "ranks": [1, 1]}, "the group has one answer only"),
    "no order": ({"ranks": None}, "completions have neither rank nor score"),
    "short": ({"ranks": [1]}, "ranks has 1 entries; a list of 2 numbers is expected"),
    "a number": ({"ranks": 1}, "ranks has the type int; a list of 2"),
    "both": ({"completions": [{"text": "a", "rank": 1}, {"text": "b", "score": 2}], "ranks": None},
             "completions[1] has no rank, others have"),
    "twice": ({"completions": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]}, "completions have a rank each"),
    "against": ({"ranks": [1, 2], "scores": [1.0, 2.0]}, "completions[0] has the better rank (1 before 2) and"),
    "infinite": ({"ranks": None, "scores": [1.0, math.inf]}, "the score of completions[1] is inf; a finite number"),
    "NaN": ({"ranks": None, "scores": [math.nan, 1.0]}, "the score of completions[0] is nan"),
    "text": ({"ranks": None, "scores": ["4", "5"]}, "the score of completions[0] is of type str; a number"),
    "true": ({"ranks": None, "scores": [True, 0]}, "the score of completions[0] is of type bool"),
    "from zero": ({"ranks": [0, 1]}, "the rank of completions[0] is 0; ranks count from 1"),
    "null answer": ({"completions": ["a", None]}, "completions[1] is null"),
    "empty answer": ({"completions": ["a", " \n"]}, "completions[1] is empty"),
    "empty after the prompt": ({"completions": [ASK, ASK + "a"]}, "completions[0] is empty after the prompt"),
    "two contents": ({"completions": ["a", {"text": "b", "response": "c"}]}, "completions[1] has text and response"),
    "no content": ({"completions": ["a", {"rank": 1}]}, "completions[1] has none of content, text, messages"),
    "control character": ({"completions": ["a", "b\x00"]}, "completions[1] holds the control character U+0000"),
    "kinds": ({"completions": ["a", assistant("b")]}, "completions must be of one kind, both texts or both"),
    "by the user": ({"completions": [assistant("a"), user("b")], "prompt": user("x")}, "completions[1] begins with"),
    "equal": ({"completions": ["a", "a"]}, "completions[0] and completions[1] are equal, and one is ranked before"),
    "equal once rendered": ({"completions": ["a", "a<|im_end|>"]}, "completions[0] and completions[1] are equal once"),
    "no prompt": ({"prompt": None}, "prompt is missing"),
    "empty prompt": ({"prompt": " "}, "prompt is empty"),
    "weight": ({"weight": -1}, "weight is -1"),
}  # fmt: skip


@pytest.mark.parametrize("change, expected", BAD_GROUPS.values(), ids=BAD_GROUPS)
def test_bad_group(refusal, change, expected):
    message = refusal([group("a", "b"), group("a", "b") | change, group("c", "") | {"id": "x"}])
    assert "2 of 3 rows cannot be used" in message and f"rows.jsonl, line 2: {expected}" in message


def test_numbers_that_no_float_holds_are_not_finite():
    with pytest.raises(RowFault, match="x is inf; a finite number"):
        number_of(10**400, "x")


def test_gap_weight_and_thresholds_need_scores(refusal, load):
    assert "gap_weight needs scores; the group has ranks alone" in refusal([group("a", "b")], gap_weight=True)
    assert "gap_weight needs the pair's margin" in refusal([pair()], gap_weight=True)
    assert "their mean is 0" in refusal([group("a", "b", ranks=[1, 2], scores=[1, 1])], gap_weight=True)
    ranked, scored = group("a", "b"), group("a", "b", scores=[1, 2])
    assert "yes_from_score needs scores" in refusal([ranked], kinds={"single"}, yes_from_score=1)
    assert "set algorithm.dpo.yes_from_score" in refusal([scored], kinds={"single"})


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"kinds": {"triple"}}, "expected one or more of pair, single, list"),
        ({"kinds": ()}, "expected one or more"),
        ({"kinds": {"pair", "list"}}, "cannot be had in one run"),
        ({"comparisons": "worst"}, "comparisons='worst' is none of all, best, adjacent"),
        ({"yes_from_score": math.nan}, "yes_from_score=nan"),
    ],
)
def test_arguments_out_of_range(load, options, expected):
    with pytest.raises(ValueError, match=expected):
        load([pair()], **options)


def test_margins_that_are_none_are_counted_and_not_refused(load, caplog):
    caplog.set_level(logging.WARNING)
    data = load([pair(margin="wide"), pair("x", margin=-1), pair("y", margin=math.nan), pair("z", margin=2)])
    assert [item["margin"] for item in data] == [0.0, 0.0, 0.0, 2.0]
    assert data.report.notes["margin_unread"] == 3 and "3 of 4 pairs: the margin is not a finite number" in caplog.text


# ---- yes and no


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_single_answers(load, read, suffix):
    rows = [single("db", True, weight=2.0, id="x"), single("dns", False, prompt="Why?\n", weight=1.0, id="y")]
    data = load(rows, f"rows.{suffix}", kinds={"single"})
    assert [(read(item), item["label"], item["weight"], item["id"]) for item in data] == [
        (["db"], True, 2.0, "x"),
        (["dns"], False, 1.0, "y"),
    ]
    assert data.rows_per_example == 2 and data.report.examples == {"yes": 1, "no": 1}
    assert data[0]["kl_ids"].tolist() == data[1]["answer_ids"].tolist()
    assert data[1]["kl_ids"].tolist() == data[0]["answer_ids"].tolist()
    assert data[0]["kl_mask"].tolist() == data[1]["answer_mask"].tolist()
    messages = [row | {"prompt": user(row["prompt"]), "completion": assistant(row["completion"])} for row in rows]
    assert [item["label"] for item in load(messages, f"m.{suffix}", kinds={"single"})] == [True, False]


@pytest.mark.parametrize("label, means", [(True, True), (1, True), (1.0, True), (False, False), (0, False)])
def test_labels(load, label, means):
    assert load([single(label=label)], kinds={"single"})[0]["label"] is means


BAD_LABELS = {
    "text": ("true", "label is 'true'; true or false is expected, or 1 or 0; write it without quotes"),
    "minus one": (-1, "label is '-1'; true or false is expected, or 1 or 0; write false for a no"),
    "score": (0.5, "label is '0.5'; true or false"),
    "null": (None, "label is null"),
    "list": ([True], "label is '[True]'"),
    "NaN": (math.nan, "label is 'nan'"),
}


@pytest.mark.parametrize("label, expected", BAD_LABELS.values(), ids=BAD_LABELS)
def test_bad_label(refusal, label, expected):
    message = refusal([single(), single(label=label)], kinds={"single"})
    assert f"rows.jsonl, line 2: {expected}" in message


def test_bad_single_answers(refusal):
    def said(**change):
        return refusal([single(), single() | change], kinds={"single"})

    assert "line 2: completion is empty" in said(completion=" ")
    assert "line 2: completion is null" in said(completion=None)
    assert "line 2: prompt is missing" in said(prompt=None)
    assert "line 2: completion begins with a user message" in said(prompt=user("x"), completion=user("y"))
    assert "line 2: completion begins with a message that is not the assistant's" in said(completion=user("y"))
    assert "line 2: completion is empty after the prompt" in said(completion=ASK)


def test_single_answers_without_a_loss_for_them_are_refused_once(refusal, write_rows):
    path = write_rows([single()] * 3, "f.parquet")
    message = refusal([write_rows([pair()], "p.jsonl"), path])
    assert message.startswith(path) and "algorithm.dpo.loss_type=kto" in message and "\n" not in message
    message = refusal([pair(), single(), group("a", "b")])
    assert "1 of 3 rows cannot be used" in message and "line 2: holds one answer a row and a label (KTO)" in message


def test_pairs_and_groups_give_single_answers_where_no_loss_takes_more(load, read):
    rows = [pair("a", "b", weight=3.0), group("c", "d", "e", scores=[3, 5, 4], prompt="Why?\n")]
    data = load(rows, kinds={"single"}, yes_from_score=4)
    assert [(*read(item), item["label"]) for item in data] == [
        ("a", True), ("b", False), ("c", False), ("d", True), ("e", True),
    ]  # fmt: skip
    assert [item["weight"] for item in data] == [3.0, 3.0, 1.0, 1.0, 1.0]


def test_labels_that_repeat_and_contradict_are_counted(load, caplog):
    caplog.set_level(logging.WARNING)
    data = load([single(), single(), single(label=False), single("x")], kinds={"single"})
    assert data.report.notes["duplicate"] == 1 and data.report.notes["contradicting"] == 3
    assert (
        data.report.notes["one_prompt"] == 4 and data.lacks_kl and "4 of 4 examples: all single answers" in caplog.text
    )
    assert data[0]["kl_ids"].shape == data[0]["kl_mask"].shape == (0,) and data[0]["answer_numbers"] == [0]


# ---- the KL's answers


def kl_of(data):
    """By (prompt, answer) ids, the KL's answer ids."""
    return {(*item["prompt_ids"].tolist(), -1, *item["answer_ids"].tolist()): item["kl_ids"].tolist() for item in data}


def test_the_kls_answer_is_another_prompts_and_not_ones_own_and_fixed_by_content(load):
    rng = np.random.default_rng(0)
    rows = [single(f"a{rng.integers(6)}", bool(rng.integers(2)), prompt=f"p{rng.integers(7)}\n") for _ in range(60)]
    data = load(rows, kinds={"single"})
    of_prompt = {}
    for item in data:
        of_prompt.setdefault(item["prompt_number"], set()).add(tuple(item["answer_ids"].tolist()))
    for item in data:
        kl = tuple(item["kl_ids"].tolist())
        assert kl != tuple(item["answer_ids"].tolist())
        others = set().union(*(answers for prompt, answers in of_prompt.items() if prompt != item["prompt_number"]))
        assert kl in others
    shuffled = [rows[at] for at in rng.permutation(60)]
    assert kl_of(load(shuffled, "s.jsonl", kinds={"single"})) == kl_of(data)
    # beside pairs too
    assert kl_of(
        [item for item in load([pair(), *rows], "m.jsonl", kinds={"single", "pair"}) if item["kind"] == "single"]
    ) == kl_of(data)


# ---- numbers and digests


def test_equal_answers_have_one_number_and_digest_and_are_kept_once(load, read):
    rows = [
        group("a", "b", "c"),
        pair("a", "b"),
        pair("a", "b", prompt="Why?\n"),
        single("b", prompt="Why?\n"),
        single("a", True),
    ]
    data = load(rows, kinds={"pair", "single"})
    assert data.prompt_numbers.tolist() == [0, 0, 0, 0, 1, 1, 0] == [item["prompt_number"] for item in data]
    texts = {}
    for item in data:
        assert [n for n in data.answer_numbers[item["index"]] if n >= 0] == item["answer_numbers"]
        for number, text in zip(item["answer_numbers"], read(item)):
            assert texts.setdefault(number, (item["prompt_number"], text)) == (item["prompt_number"], text)
    assert len(texts) == 5 == len(data._store.answers)
    # b behind the other prompt stands in a pair of it already: no number of its own
    first, second = data[5]["answer_numbers"], data[6]["answer_numbers"]
    assert texts[first[1]] == (1, "a") and texts[second[1]] == (0, "b")
    digests = data.answer_digests()
    assert digests.shape == (5, 32) and digests.dtype == np.uint8 and len({bytes(one) for one in digests}) == 5
    assert data.lengths.shape == (7, 3) and data.lengths[5, 2] == len(data[5]["kl_ids"])


def test_equal_ids_with_another_mask_are_another_answer():
    store, rows = (
        AnswerStore(),
        [EncodedRow([1, 2], [[3, 4]], [mask], False, False) for mask in ([1, 1], [0, 1], [1, 1])],
    )
    assert [store.append(row, [0])[0] for row in rows] == [0, 1, 0]
    store.freeze()
    assert (store.digests[0] != store.digests[1]).any() and store.prompt_of.tolist() == [0, 0]


def test_kl_rows_have_numbers_and_digests_after_the_answers(load):
    data = load([single("a"), single("b", prompt="Why?\n")], kinds={"single"})
    assert data.answer_numbers.tolist() == [[0, 2], [1, 3]]
    other = load([pair("b", "a"), pair("b", "a", prompt="Why?\n")])
    assert {bytes(d) for d in data.answer_digests()} == {bytes(d) for d in other.answer_digests()}
    assert data.lengths[0].tolist() == [len(data[0]["prompt_ids"]), len(data[0]["answer_ids"]), len(data[0]["kl_ids"])]


def test_digests_tell_labels_and_ranks_apart(load):
    def identity(*rows, **options):
        return load(list(rows), **options).identity()

    assert identity(single(), kinds={"single"}) != identity(single(label=False), kinds={"single"})
    lists = {identity(group("a", "b", "c", ranks=ranks), kinds={"list"}) for ranks in ([1, 2, 3], [1, 2, 2], [2, 1, 3])}
    assert len(lists) == 3
    assert identity(group("a", "b", weight=2.0, id="x")) == identity(pair("a", "b"))


def test_mixed_files_and_shapes(load, write_rows, tmp_path, tokenizer):
    files = [
        write_rows([pair(), pair("x")], "pairs.parquet"),
        write_rows([single(), group("a", "b", "c"), single("no", False, prompt="Why?\n")], "feedback.jsonl"),
        write_rows(
            [pair("q") | {"completions": None, "ranks": None}, group("g", "h") | {"chosen": None, "rejected": None}],
            "both.parquet",
        ),
    ]
    data = load(files, kinds={"pair", "single"})
    assert data.kinds.tolist() == ["pair", "pair", "single", *["pair"] * 3, "single", "pair", "pair"]
    assert data.file_numbers.tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2]
    assert str(data.report) == "7 of 7 rows kept (7 pairs, 1 yes, 1 no)"
    cached = [load(files, kinds={"pair", "single"}, cache_dir=str(tmp_path / "c")) for _ in range(2)]
    for one in cached:
        assert one.identity() == data.identity() and one.report == data.report
        assert (one.answer_digests() == data.answer_digests()).all() and (
            one.answer_numbers == data.answer_numbers
        ).all()
        for left, right in zip(one, data):
            assert left.keys() == right.keys()
            assert all(torch.equal(v, right[k]) if torch.is_tensor(v) else v == right[k] for k, v in left.items())


@pytest.mark.parametrize(
    "settings",
    [{"comparisons": "best"}, {"gap_weight": True}, {"kinds": {"list"}}, {"kinds": {"single"}, "yes_from_score": 1.0},
     {"kinds": {"single"}, "yes_from_score": 2.0}, {"score_key": "grade"}],
)  # fmt: skip
def test_settings_that_decide_about_examples_miss_the_cache(load, tmp_path, settings):
    rows = [group("a", "b", "c", scores=[1, 2, 3], grades=[1, 2, 3])]
    load(rows, cache_dir=str(tmp_path / "c"))
    load(rows, cache_dir=str(tmp_path / "c"), **settings)
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_too_long_groups_and_answers(load, refusal):
    long = group("a", "word " * 80)
    message = refusal([group("a", "b"), long])
    assert "line 2: prompt" in message and "longest of 2 completions" in message
    assert "completion " in refusal([single("word " * 80)], kinds={"single"})
    data = load([group("a", "b"), long], truncation="drop")
    assert len(data) == 1 and data.report.dropped["answer_too_long"] == 1


def test_columns_by_other_names(load, read):
    rows = [{"q": ASK, "answers": [{"text": "a", "grade": 1}, {"text": "b", "grade": 2}]}]
    data = load(rows, prompt_key="q", completions_key="answers", score_key="grade")
    assert [read(item) for item in data] == [["b", "a"]]
    rows = [{"q": ASK, "reply": "a", "good": 1}]
    keys = {"prompt_key": "q", "completion_key": "reply", "label_key": "good"}
    assert load(rows, kinds={"single"}, **keys)[0]["label"] is True
    with pytest.raises(PreferenceDataError, match="no row has the column of completions_key='answers'"):
        load([pair()], completions_key="answers")
    with pytest.raises(PreferenceDataError, match="both name the column 'prompt'"):
        load([pair()], completion_key="prompt")


def test_columns_that_a_run_names():
    assert column_keys({"prompt_key": "q", "score_key": "grade", "label_key": None, "train_files": []}) == {
        "prompt_key": "q",
        "score_key": "grade",
    }


def test_spelled_special_tokens_are_broken_up_in_every_shape(load, tokenizer):
    evil = "x<|im_end|>y"
    rows = [
        group(assistant("a"), assistant(evil), prompt=user("q"), ranks=[1, 2]),
        single(assistant(evil), prompt=user("q")),
    ]
    data = load(rows, kinds={"pair", "single"})
    assert data.report.notes["control_tokens"] == 2
    for ids in (data[0]["rejected_ids"], data[1]["answer_ids"]):
        assert ids.tolist().count(tokenizer.eos_token_id) == 1
