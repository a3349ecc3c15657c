"""Pairs as other tools write them: the same pairs of each layout, said once with its name, and nothing guessed."""

import json
import logging

import pytest

from verl_aiops.data import PreferenceDataError, PreferenceDataset
from verl_aiops.data.errors import RowFault
from verl_aiops.data.fields import keys_of_option
from verl_aiops.data.foreign import LAYOUTS, dialogue_of, layout_of, own_columns
from verl_aiops.data.layouts import dialogue_hint, layout_hint, setting_hint
from verl_aiops.data.notes import LAYOUTS_READ

SYSTEM = "You are on call."
TALKS = [
    ("Which service failed?", "the database", "the cache"),
    ("Why did it?", "its disk is full: see\nthe log", "a deploy"),
    ("\u670d\u52a1\u4e3a\u4ec0\u4e48\u6162\uff1f", "\u78c1\u76d8\u6ee1", "\u7f51\u7edc"),
]


@pytest.fixture
def load(tokenizer):
    def load(files, **options):
        limits = {"max_prompt_length": 512, "max_response_length": 512, "progress": False}
        return PreferenceDataset(files, tokenizer, **(limits | options))

    return load


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def ours(ask, good, bad):
    return {"prompt": [user(ask)], "chosen": [assistant(good)], "rejected": [assistant(bad)]}


# a generic set, without a system message
GENERIC = {
    "hh-rlhf": lambda ask, good, bad: {
        side: f"\n\nHuman: {ask}\n\nAssistant: {text}" for side, text in (("chosen", good), ("rejected", bad))
    },
    "ShareGPT": lambda ask, good, bad: {
        "conversations": [{"from": "human", "value": ask}],
        "chosen": {"from": "gpt", "value": good},
        "rejected": {"from": "gpt", "value": bad},
    },
    "Orca": lambda ask, good, bad: {"system": "", "question": ask, "chosen": good, "rejected": bad},
    "LLaMA-Factory": lambda ask, good, bad: {"instruction": ask, "input": "", "chosen": good, "rejected": bad},
    "Argilla": lambda ask, good, bad: {"instruction": ask, "chosen_response": good, "rejected_response": bad},
}


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet", "pairs.json"])
def test_a_generic_set_in_five_layouts_gives_the_same_pairs(load, write_rows, tmp_path, name, caplog):
    wanted = load(write_rows([ours(*talk) for talk in TALKS], "ours.jsonl")).identity()
    for layout, row in GENERIC.items():
        rows = [row(*talk) for talk in TALKS]
        path = str(tmp_path / name)
        if name.endswith(".json"):
            (tmp_path / name).write_text(json.dumps(rows, indent=1))
        else:
            write_rows(rows, name)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            read = load(path)
        assert read.identity() == wanted, layout
        said = [record.getMessage() for record in caplog.records]
        assert said.count(f"3 of 3 pairs: {LAYOUTS_READ[layout]}") == 1, (layout, said)
        assert f"3 in the layout of {layout}" in str(read.report)
        assert read.report.unused == []


def test_every_layout_has_its_words():
    assert {layout.name for layout in LAYOUTS} <= LAYOUTS_READ.keys()


SYSTEMS = {
    "Orca": {"system": SYSTEM, "question": "q?", "chosen": "a", "rejected": "b"},
    "LLaMA-Factory": {"system": SYSTEM, "instruction": "q?", "chosen": "a", "rejected": "b"},
    "Argilla": {"system": SYSTEM, "input": "q?", "chosen": "a", "rejected": "b"},
    "ShareGPT": {
        "conversations": [{"from": "system", "value": SYSTEM}, {"from": "human", "value": "q?"}],
        "chosen": [{"from": "gpt", "value": "a"}],
        "rejected": [{"from": "gpt", "value": "b"}],
    },
    "LLaMA-Factory's ShareGPT": {
        "system": SYSTEM,
        "conversations": [{"from": "human", "value": "q?"}],
        "tools": "",
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
    "messages": {
        "messages": [{"role": "system", "content": SYSTEM}, user("q?")],
        "chosen": assistant("a"),
        "rejected": assistant("b"),
    },
    "from/value in our columns": {
        "prompt": json.dumps([{"from": "system", "value": SYSTEM}, {"from": "human", "value": "q?"}]),
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
}


@pytest.mark.parametrize("row", SYSTEMS.values(), ids=SYSTEMS)
def test_the_system_message_comes_before_the_prompt(load, write_rows, row):
    wanted = {"prompt": [{"role": "system", "content": SYSTEM}, user("q?")], "chosen": "a", "rejected": "b"}
    assert load(write_rows([row], "a.jsonl")).identity() == load(write_rows([wanted], "b.jsonl")).identity()


def test_llama_factory_joins_instruction_and_input_after_the_history(load, write_rows):
    row = {"instruction": "Why?", "input": "disk full", "history": [["Hi", "Hello"]], "chosen": "a", "rejected": "b"}
    wanted = {"prompt": [user("Hi"), assistant("Hello"), user("Why?\ndisk full")], "chosen": "a", "rejected": "b"}
    for name in ("a.jsonl", "a.parquet"):
        assert load(write_rows([row], name)).identity() == load(write_rows([wanted], "b.jsonl")).identity()


# ---- dialogues in one text


def test_turns_of_a_dialogue():
    text = "\n\nHuman: Hi\n\nAssistant: Hello\n\nwith: a colon\n\nHuman: So\n\nHuman: why?\n\nAssistant: disk"
    assert dialogue_of(text) == [user("Hi"), assistant("Hello\n\nwith: a colon"), user("So\n\nwhy?"), assistant("disk")]
    assert dialogue_of("Human: Hi") is None and dialogue_of("So said Human: Hi\n\nAssistant: a") is None


def test_dialogues_that_part_early_have_what_they_share_as_prompt(load, write_rows):
    begin = "\n\nHuman: a?\n\nAssistant: "
    row = {"chosen": f"{begin}one\n\nHuman: b?\n\nAssistant: two", "rejected": f"{begin}three"}
    wanted = {
        "prompt": [user("a?")],
        "chosen": [assistant("one"), user("b?"), assistant("two")],
        "rejected": [assistant("three")],
    }
    assert load(write_rows([row], "a.jsonl")).identity() == load(write_rows([wanted], "b.jsonl")).identity()


def test_a_text_prompt_in_turns_is_left_as_it_is_unless_texts_are_chats(load, write_rows):
    row = {"prompt": "\n\nHuman: q?\n\nAssistant:", "chosen": " a", "rejected": " b"}
    plain = load(write_rows([row], "a.jsonl"))
    assert plain.report.notes == {"text": 1}
    wanted = {"prompt": [user("q?")], "chosen": " a", "rejected": " b"}
    read = load(write_rows([row], "a.jsonl"), text_pairs="chat")
    assert read.identity() == load(write_rows([wanted], "b.jsonl")).identity()


@pytest.mark.parametrize(
    "row, said",
    [
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}, "share no prompt"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: ", "rejected": "\n\nHuman: a\n\nAssistant: d"}, "chosen is empty"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "d"}, "not all as hh-rlhf writes it"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: b"}, "are equal"),
    ],
)
def test_dialogues_without_a_prompt_or_an_answer_are_refused(load, write_rows, row, said):
    with pytest.raises(PreferenceDataError, match=said):
        load(write_rows([row]))


# ---- nothing is guessed

ANSWERS = {"chosen": "a", "rejected": "b"}
TWO_WAYS = {
    "question or instruction": {"system": "", "question": "q", "instruction": "q", **ANSWERS},
    "question or input": {"system": "", "question": "q", "input": "q", **ANSWERS},
    "conversations or messages": {"conversations": [user("q")], "messages": [user("q")], **ANSWERS},
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("row", TWO_WAYS.values(), ids=TWO_WAYS)
def test_two_possible_prompts_are_one_message(load, write_rows, row, suffix):
    with pytest.raises(PreferenceDataError, match="can be read in 2 ways: the prompt may be .* Set data.prompt_key"):
        load(write_rows([row, row], f"a.{suffix}"))


def test_the_prompt_that_is_named_decides(load, write_rows):
    row = {"question": "q?", "instruction": "q?", **ANSWERS}
    read = load(write_rows([row], "a.jsonl"), prompt_key="question")
    assert read.identity() == load(write_rows([{"prompt": "q?", **ANSWERS}], "b.jsonl")).identity()


REFUSED = {
    "an answer at the end of a conversation": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], **ANSWERS},
        "conversations ends with the assistant's message",
    ),
    "another speaker": (
        {"conversations": [{"from": "admin", "value": "q"}], **ANSWERS},
        r"prompt\[0\] is from 'admin'; of messages with from and value these are human",
    ),
    "no question": ({"system": "s", "question": None, **ANSWERS}, "question is empty"),
    "a number": ({"system": "s", "question": 3, **ANSWERS}, "question is of type int; a text is expected"),
    "no conversation": ({"conversations": [], **ANSWERS}, "conversations is empty"),
    "a broken history": ({"instruction": "q", "history": [["a"]], **ANSWERS}, r"history\[0\] is not a pair of texts"),
    "no value": (
        {"conversations": [{"from": "human", "value": None}], **ANSWERS},
        r"prompt\[0\] has the role None",
    ),
    "an image": ({"instruction": "q", "images": ["a.png"], **ANSWERS}, "images is not empty"),
}


@pytest.mark.parametrize("row, said", REFUSED.values(), ids=REFUSED)
def test_what_has_no_reading_is_refused_with_its_row(load, write_rows, row, said):
    with pytest.raises(PreferenceDataError, match=f"pairs.jsonl, line 1: {said}"):
        load(write_rows([row]))


def test_rows_of_several_layouts_in_one_file_are_counted_apart(load, write_rows):
    read = load(write_rows([row(*talk) for row, talk in zip(GENERIC.values(), [*TALKS, *TALKS])]))
    assert read.report.notes == {f"layout: {name}": 1 for name in GENERIC} | {"layout: from/value": 1, "duplicate": 2}


# ---- columns by name, and texts as chats


def test_columns_by_one_option(load, write_rows):
    keys = keys_of_option("prompt=question, chosen=good,rejected=bad,system=persona")
    assert keys == {
        "prompt_key": "question",
        "chosen_key": "good",
        "rejected_key": "bad",
        "system_key": "persona",
    }
    row = {"question": "q?", "good": "a", "bad": "b", "persona": SYSTEM}
    wanted = {"prompt": [{"role": "system", "content": SYSTEM}, user("q?")], **ANSWERS}
    read = load(write_rows([row], "a.parquet"), **keys)
    assert read.identity() == load(write_rows([wanted], "b.jsonl")).identity() and read.report.unused == []
    assert keys_of_option(None) == keys_of_option("") == {}


@pytest.mark.parametrize(
    "text, said",
    [
        ("prompt", "expected NAME=COLUMN"),
        ("prompt=", "expected NAME=COLUMN"),
        ("promt=a", r"no such name: 'promt' \(did you mean prompt\?\)"),
        ("prompt=a,prompt=b", "prompt is named twice"),
    ],
)
def test_a_wrong_option_of_columns_is_refused(text, said):
    with pytest.raises(PreferenceDataError, match=said):
        keys_of_option(text)


def test_a_system_column_asked_for_by_name_must_be_there(load, write_rows):
    with pytest.raises(PreferenceDataError, match="no row has the column of system_key='persona'"):
        load(write_rows([{"prompt": "q", **ANSWERS}]), system_key="persona")


@pytest.mark.parametrize("choice, kind", [("chat", "text_in_chat"), ("plain", "text_plain"), (None, "text")])
def test_the_choice_for_plain_texts_is_said(load, write_rows, caplog, choice, kind):
    with caplog.at_level(logging.WARNING):
        read = load(write_rows([{"prompt": "q?", **ANSWERS}], "a.jsonl"), text_pairs=choice)
    assert read.report.notes == {kind: 1} and "1 of 1 pairs: plain texts are" in caplog.text
    wanted = {"prompt": [user("q?")], **ANSWERS}
    same = read.identity() == load(write_rows([wanted], "b.jsonl")).identity()
    assert same == (choice == "chat")
    assert ("1 of plain texts in the chat template" in str(read.report)) == (choice == "chat")
    assert ("1 of plain texts without the chat template" in str(read.report)) == (choice == "plain")


@pytest.mark.parametrize("row", [{"completion": "a", "label": True}, {"completions": ["a", "b"], "ranks": [1, 2]}])
def test_texts_of_other_shapes_are_chats_too(load, write_rows, row):
    kinds = ("pair", "single")
    read = load(write_rows([{"prompt": "q?", **row}], "a.jsonl"), text_pairs="chat", kinds=kinds)
    wanted = load(write_rows([{"prompt": [user("q?")], **row}], "b.jsonl"), kinds=kinds)
    assert read.identity() == wanted.identity()


def test_choices_that_cannot_be(load, write_rows, tokenizer):
    path = write_rows([{"prompt": "q?", **ANSWERS}])
    with pytest.raises(ValueError, match="data.text_pairs='chats': expected one of chat, plain"):
        load(path, text_pairs="chats")
    with pytest.raises(ValueError, match="data.text_pairs=plain with data.system_key=s"):
        load(path, text_pairs="plain", system_key="s")
    tokenizer.chat_template = None
    with pytest.raises(PreferenceDataError, match="without data.text_pairs=chat"):
        load(path, text_pairs="chat")


def read_as(*columns, prompt="prompt", chosen="chosen", rejected="rejected"):
    layout = layout_of("the file", columns, prompt=prompt, chosen=chosen, rejected=rejected)
    return None if layout is None else layout.name


def test_a_layout_is_taken_where_nothing_else_says_what_the_prompt_is():
    pair = ("chosen", "rejected")
    assert read_as("system", "question", *pair) == "Orca"
    assert read_as("system", "question", *pair, prompt="ask") is None
    assert read_as("system", "question", "prompt", *pair) is None
    # a system and an input are Argilla's alone only where there is no instruction
    assert read_as("system", "input", *pair) == "Argilla"
    assert read_as("system", "input", "instruction", *pair) == "LLaMA-Factory"
    argilla = ("instruction", "chosen_response", "rejected_response")
    assert read_as(*argilla) == "Argilla"
    assert read_as(*argilla, chosen="a") is None and read_as(*argilla, rejected="b") is None


def test_what_a_layout_reads_does_not_stand_beside_what_it_became():
    row = {"system": "s", "question": "q", "chosen": "a", "rejected": "b", "source": "x"}
    own = own_columns(row, lambda note: None, prompt="prompt", chosen="chosen", rejected="rejected")
    assert list(own) == ["system", "chosen", "rejected", "source", "prompt"]


@pytest.mark.parametrize("last", [{"from": "gpt", "value": "a"}, {"role": "assistant", "content": "a"}])
def test_a_conversation_that_ends_with_an_answer_is_refused(last):
    row = {"conversations": [{"from": "human", "value": "q"}, last], "chosen": "a", "rejected": "b"}
    with pytest.raises(RowFault, match="ends with the assistant's message"):
        own_columns(row, lambda note: None, prompt="prompt", chosen="chosen", rejected="rejected")


def test_hints_say_no_more_than_the_columns_do():
    assert "(SFT)" in layout_hint(["messages"]) and layout_hint(["messages"], least=2) == ""
    assert dialogue_hint("\n\nHuman: q\n\nAssistant: a") and dialogue_hint("Notes.\n\nAssistant: a") == ""
    assert dialogue_hint("\n\nHuman: q") == ""
    hint = setting_hint(["chosen"], ["prompt", "question", "better", "rejected"])
    assert "data.chosen_key=better" in hint and "prompt_key" not in hint
    assert "data.prompt_key=question" in setting_hint(["chosen"], ["question", "better", "rejected"])
