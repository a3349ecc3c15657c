"""Which files and rows are taken, and what a user is told about those that are not."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from verl_aiops.data import PreferenceDataError, PreferenceDataset

GOOD = {"prompt": "Which service failed?\n", "chosen": "the database", "rejected": "the cache"}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


TALK = {"prompt": [user("Which?")], "chosen": [assistant("db")], "rejected": [assistant("cache")]}


@pytest.fixture
def load(tokenizer):
    def load(files, **options):
        options = {"max_prompt_length": 512, "max_response_length": 512, "progress": False} | options
        return PreferenceDataset(files, tokenizer, **options)

    return load


@pytest.fixture
def refusal(load, write_rows):
    """Function (rows or path, ...) -> the message of the PreferenceDataError that loading them raises."""

    def refusal(rows, name="pairs.jsonl", **options):
        files = rows if isinstance(rows, str) else write_rows(rows, name)
        with pytest.raises(PreferenceDataError) as caught:
            load(files, **options)
        return str(caught.value)

    return refusal


# ---- what is taken


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("row", [GOOD, TALK], ids=["texts", "messages"])
def test_both_kinds_of_file_give_the_same_pairs(load, write_rows, row, suffix):
    rows = [row | {"id": f"r{at}", "group": "g", "weight": 0.5 * at} for at in range(3)]
    data = load(write_rows(rows, f"pairs.{suffix}"))
    assert [item["id"] for item in data] == ["r0", "r1", "r2"]
    assert [item["weight"] for item in data] == [0.0, 0.5, 1.0]
    assert {item["group"] for item in data} == {"g"}
    assert data.identity() == load(write_rows([row] * 3)).identity()


def test_several_files_are_read_in_order(load, write_rows):
    files = [write_rows([GOOD], "a.jsonl"), write_rows([TALK, TALK], "b.parquet")]
    for given in (files, tuple(files), OmegaConf.create(files)):
        data = load(given)
        assert [item["id"] for item in data] == ["a.jsonl:1", "b.parquet:0", "b.parquet:1"]
        assert [item["index"] for item in data] == [0, 1, 2]


def test_missing_and_null_optional_columns_have_defaults(load, write_rows):
    data = load(write_rows([GOOD, GOOD | {"id": None, "group": None, "weight": None}], "p.parquet"))
    assert [(item["id"], item["group"], item["weight"]) for item in data] == [
        ("p.parquet:0", None, 1.0),
        ("p.parquet:1", None, 1.0),
    ]


def test_other_column_names(load, write_rows):
    row = {"question": GOOD["prompt"], "good": GOOD["chosen"], "bad": GOOD["rejected"]}
    data = load(write_rows([row]), prompt_key="question", chosen_key="good", rejected_key="bad")
    assert data.identity() == load(write_rows([GOOD])).identity()


def test_the_prompt_may_be_inside_the_answers(load, write_rows):
    explicit = load(write_rows([TALK]))
    inside = {"chosen": TALK["prompt"] + TALK["chosen"], "rejected": TALK["prompt"] + TALK["rejected"]}
    assert load(write_rows([inside])).identity() == explicit.identity()
    assert load(write_rows([inside], "p.parquet")).identity() == explicit.identity()
    assert load(write_rows([inside | {"prompt": "Which?"}])).identity() == explicit.identity()


def test_the_shared_beginning_may_be_long(load, write_rows):
    history = [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c")]
    inside = {"chosen": [*history, assistant("d")], "rejected": [*history, assistant("e")]}
    explicit = {"prompt": history, "chosen": [assistant("d")], "rejected": [assistant("e")]}
    assert load(write_rows([inside])).identity() == load(write_rows([explicit])).identity()


def test_prompt_and_answers_of_two_kinds(load, write_rows):
    explicit = load(write_rows([TALK]))
    text_answers = TALK | {"chosen": "db", "rejected": "cache"}
    text_prompt = TALK | {"prompt": "Which?"}
    assert load(write_rows([text_answers])).identity() == explicit.identity()
    assert load(write_rows([text_prompt])).identity() == explicit.identity()


def test_json_lines_as_they_are_found(load, tmp_path):
    line = json.dumps(GOOD | {"prompt": "a\u2028b \u0085 中文\n"}, ensure_ascii=False)
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n\r\n\n" + line.encode())
    assert [item["id"] for item in load(str(path))] == ["p.jsonl:1", "p.jsonl:4"]


def test_limit_takes_the_first_rows_or_a_seeded_choice_in_order(load, write_rows):
    files = [write_rows([GOOD | {"id": at} for at in range(600)], "a.parquet")]
    files.append(write_rows([GOOD | {"id": at} for at in range(600, 700)], "b.jsonl"))

    def ids(**options):
        return [int(item["id"]) for item in load(files, **options)]

    assert ids(limit=3) == [0, 1, 2]
    assert ids(limit=650) == list(range(650))
    assert ids(limit=10_000) == list(range(700))
    some = ids(limit=40, seed=1)
    assert len(some) == 40 and some == sorted(set(some)) and some[-1] > 600
    assert ids(limit=40, seed=1) == some != ids(limit=40, seed=2)


# ---- what is refused: files


def test_no_files(refusal, load):
    with pytest.raises(PreferenceDataError, match="no data files"):
        load([])


def test_file_that_is_not_there(refusal, tmp_path):
    assert "gone.jsonl does not exist" in refusal(str(tmp_path / "gone.jsonl"))
    assert "is not a file" in refusal(str(tmp_path))
    assert "a folder; name the files in it" in refusal(str(tmp_path))
    assert "addresses are not read; download" in refusal("https://example.org/pairs.jsonl")
    assert "patterns are not expanded; name the files" in refusal(str(tmp_path / "*.jsonl"))


def test_one_column_is_not_two_parts_of_a_pair(refusal):
    expected = "data.prompt_key and data.chosen_key both name the column 'prompt'"
    assert expected in refusal([GOOD], chosen_key="prompt")
    assert "data.chosen_key and data.rejected_key both name" in refusal([GOOD], rejected_key="chosen")


@pytest.mark.parametrize(
    "line, mend",
    [
        ('{"a": 1}{"a": 2}', "a second value begins there: put each on a line of its own"),
        ('{"a": 1}\r{"a": 2}', "lines end in carriage returns alone there"),
        (json.dumps(GOOD) + "\n\ufeff" + json.dumps(GOOD), "a byte order mark stands there"),
        ("<<<<<<< HEAD", "a mark of git about a merge that was not finished"),
        ("{'prompt': 'q'}", "spelled as Python prints it: write it with json.dumps"),
        (json.dumps(GOOD) + '\n{"prompt": "q', "was it cut short?"),
        (json.dumps(json.dumps(GOOD)), "encoded twice: write the object itself"),
    ],
)
def test_lines_that_are_no_json_are_told_with_what_mends_them(refusal, tmp_path, line, mend):
    (tmp_path / "pairs.jsonl").write_bytes(line.encode() + b"\n")
    assert mend in refusal(str(tmp_path / "pairs.jsonl"))


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
def test_empty_file(refusal, tmp_path, name):
    (tmp_path / name).touch()
    assert f"{name} is empty (0 bytes)" in refusal(str(tmp_path / name))


def test_file_without_rows(refusal, tmp_path):
    (tmp_path / "p.jsonl").write_text("\n \n")
    assert "p.jsonl has no rows" in refusal(str(tmp_path / "p.jsonl"))
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in GOOD}), tmp_path / "p.parquet")
    assert "p.parquet has no rows" in refusal(str(tmp_path / "p.parquet"))


def test_unknown_kind_of_file(refusal, tmp_path):
    (tmp_path / "p.csv").write_text("prompt,chosen,rejected\n")
    message = refusal(str(tmp_path / "p.csv"))
    assert "p.csv" in message and "'.csv'" in message and ".parquet" in message and ".jsonl" in message


def test_parquet_cut_short(refusal, write_rows):
    path = write_rows([GOOD] * 100, "p.parquet")
    with open(path, "rb+") as file:
        file.truncate(200)
    assert "p.parquet cannot be read as parquet (cut short or damaged?)" in refusal(path)


def test_parquet_damaged_inside(refusal, tmp_path):
    path = tmp_path / "p.parquet"
    table = pa.Table.from_pylist([GOOD | {"prompt": f"{at} {GOOD['prompt']}"} for at in range(2000)])
    pq.write_table(table, path, use_dictionary=False, compression="snappy", row_group_size=1000)
    content = bytearray(path.read_bytes())
    place = len(content) // 3
    content[place : place + 400] = b"\xff" * 400
    path.write_bytes(content)
    assert "p.parquet cannot be read after row" in refusal(str(path))


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_gives_the_pairs_of_its_lines(load, write_rows, tmp_path, indent):
    rows = [GOOD | {"id": f"r{at}", "chosen": f"[\n]{at}"} for at in range(3)]
    (tmp_path / "p.json").write_text("\ufeff" * (indent is None) + json.dumps(rows, indent=indent) + "\n")
    read = load(str(tmp_path / "p.json"))
    assert [item["id"] for item in read] == ["r0", "r1", "r2"]
    assert read.identity() == load(write_rows(rows)).identity()


@pytest.mark.parametrize(
    "text, said",
    [
        ("[]", "has no rows: the JSON array is empty"),
        ('[{"a": 1}', "behind item 1, line 1, it ends, was it cut short?"),
        ('[{"a": 1}\n {"a": 2}]', "behind item 1, line 2, a comma is missing"),
        ('[{"a": 1},\n{"a": "x]', "Unterminated string starting at at line 2 (item 2)"),
        ('[{"a": 1}] {"a": 2}', "text follows behind its end"),
        ("[" + '{"a":' * 3000, "item 1, line 1, is too deep"),
        ('[{"a": 1}, ]', "Expecting value at line 1 (item 2)"),
    ],
)
def test_a_broken_json_array_is_told_with_its_place(refusal, tmp_path, text, said):
    (tmp_path / "p.jsonl").write_text(text)
    message = refusal(str(tmp_path / "p.jsonl"))
    assert "p.jsonl" in message and said in message


def test_rows_of_an_array_are_told_by_item_and_line(refusal, tmp_path):
    rows = [json.dumps(GOOD), "7", json.dumps(GOOD | {"weight": -1}), '{"a": 1, "a": ' + "9" * 5000 + "}"]
    (tmp_path / "p.json").write_text("[\n" + ",\n".join(rows) + "\n]")
    message = refusal(str(tmp_path / "p.json"))
    assert "3 of 4 rows cannot be used" in message
    assert "p.json, item 2 (line 3): is JSON of type int" in message and "item 3 (line 4): weight is -1" in message
    assert "item 4 (line 5)" in message


# ---- what is refused: columns


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
def test_missing_columns_are_told_with_those_found(refusal, name):
    message = refusal([{"prompt": "a", "choosen": "b", "text": "c"}], name)
    assert name in message and "'chosen', 'rejected'" in message
    assert "found: 'prompt', 'choosen', 'text'" in message
    assert "did you mean data.chosen_key=choosen?" in message


def test_a_prompt_column_asked_for_by_name_must_be_there(refusal):
    message = refusal([GOOD], prompt_key="prompts")
    assert "lacks the column(s) 'prompts'" in message and "data.prompt_key=prompt?" in message


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
@pytest.mark.parametrize("key", ["id_key", "group_key", "weight_key", "tools_key"])
def test_an_optional_column_asked_for_by_name_must_be_somewhere(refusal, name, key):
    assert f"no row has the column of {key}='wieght'; found: 'prompt'" in refusal([GOOD], name, **{key: "wieght"})


def test_an_optional_column_may_begin_in_a_later_line(load, write_rows):
    data = load(write_rows([GOOD, GOOD | {"w": 2.0}], "p.jsonl"), weight_key="w")
    assert [item["weight"] for item in data] == [1.0, 2.0]


def test_every_file_is_checked_before_any_row(refusal, write_rows, load):
    good, bad = write_rows([GOOD | {"weight": -1}], "good.jsonl"), write_rows([{"a": 1}], "bad.parquet")
    with pytest.raises(PreferenceDataError, match="bad.parquet lacks"):
        load([good, bad])


# ---- what is refused: rows

PART = {"type": "text", "text": "x"}
# name: (row, what the message says after file and line)
BAD_TEXTS = {
    "null": ({"chosen": None}, "chosen is null"),
    "number": ({"chosen": 3}, "chosen is of type int; a text or a list of messages is expected"),
    "object": ({"prompt": {"a": 1}}, "prompt is of type dict"),
    "empty prompt": ({"prompt": " \n"}, "prompt is empty"),
    "null prompt": ({"prompt": None}, "prompt is missing"),
    "empty chosen": ({"chosen": ""}, "chosen is empty"),
    "blank rejected": ({"rejected": " \n\t"}, "rejected is empty"),
    "equal": ({"rejected": GOOD["chosen"]}, "chosen and rejected are equal"),
    "equal once rendered": ({"rejected": GOOD["chosen"] + "<|im_end|>"}, "chosen and rejected are equal once rendered"),
    "messages beside": ({"rejected": TALK["rejected"]}, "chosen and rejected must be of one kind"),
    "null character": ({"chosen": "ab\x00c"}, "chosen holds the control character U+0000 at character 2"),
    "lone surrogate": ({"prompt": "ab\ud83d"}, "prompt holds the half of a surrogate pair U+D83D at character 2"),
    "negative weight": ({"weight": -0.5}, "weight is -0.5"),
    "weight NaN": ({"weight": math.nan}, "weight is nan"),
    "infinite weight": ({"weight": math.inf}, "weight is inf"),
    "weight as text": ({"weight": "1"}, "weight is of type str"),
    "true as weight": ({"weight": True}, "weight is of type bool"),
    "id": ({"id": [1]}, "id is of type list"),
    "group": ({"group": 1.5}, "group is of type float"),
}
BAD_MESSAGES = {
    "no prompt": ({"prompt": []}, "prompt is empty"),
    "no answer": ({"chosen": []}, "chosen is empty (no message after the prompt)"),
    "blank answer": ({"rejected": [assistant(" ")]}, "rejected is empty"),
    "equal": ({"rejected": TALK["chosen"]}, "chosen and rejected are equal"),
    "unknown role": ({"prompt": [user("x") | {"role": "human"}]}, "prompt[0] has the role 'human'; roles are system,"),
    "no role": ({"prompt": [{"content": "x"}]}, "prompt[0] has the role None"),
    "no content": ({"chosen": [{"role": "assistant"}]}, "chosen[0] has nothing as its content"),
    "parts": ({"prompt": [user([PART])]}, "prompt[0] has a value of type list as its content; a text is expected"),
    "text among messages": ({"chosen": ["db"]}, "chosen[0] is of type str, not a message"),
    "answer by the user": ({"chosen": [user("db")]}, "chosen begins with a user message"),
    "user's last word": ({"chosen": [assistant("db"), user("why?")]}, "chosen ends with a user message"),
    "terminal colours": ({"prompt": [user("\x1b[31mred")]}, "prompt[0] content holds the control character U+001B"),
    "tools": ({"tools": "{"}, "tools is not valid JSON"),
    "tool list": ({"tools": ["a"]}, "tools is not a list of tool descriptions"),
}
BAD_CONVERSATIONS = {  # chosen, rejected, prompt
    "equal": ("ab", "ab", None, "chosen and rejected are equal"),
    "different prompts": ("ab", "cd", None, "chosen and rejected begin with different messages"),
    "different later questions": ("abcd", "abxd", None, "chosen begins with a user message"),
    "one begins the other": ("ab", "abcd", None, "chosen is empty"),
    "another prompt beside": ("ab", "ad", "other", "prompt is a text that is none of the messages"),
}


@pytest.mark.parametrize("change, expected", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_bad_row_of_texts(refusal, change, expected):
    message = refusal([GOOD, GOOD | change])
    assert "1 of 2 rows cannot be used" in message and f"pairs.jsonl, line 2: {expected}" in message


@pytest.mark.parametrize("change, expected", BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_bad_row_of_messages(refusal, change, expected):
    message = refusal([TALK, TALK | change])
    assert "1 of 2 rows cannot be used" in message and f"pairs.jsonl, line 2: {expected}" in message


@pytest.mark.parametrize("chosen, rejected, prompt, expected", BAD_CONVERSATIONS.values(), ids=BAD_CONVERSATIONS)
def test_bad_row_of_conversations(refusal, chosen, rejected, prompt, expected):
    def turns(letters):
        return [assistant(letter) if at % 2 else user(letter) for at, letter in enumerate(letters)]

    row = {"chosen": turns(chosen), "rejected": turns(rejected)} | ({"prompt": prompt} if prompt else {})
    assert f"pairs.jsonl, line 2: {expected}" in refusal([GOOD, row])


def test_parquet_rows_are_counted_from_zero(refusal):
    rows = [GOOD | {"id": str(at)} for at in range(600)]
    rows[555]["chosen"] = ""
    assert "p.parquet, row 555 (counting from 0): chosen is empty" in refusal(rows, "p.parquet")


def test_parquet_column_of_another_type(refusal):
    numbers = GOOD | {"chosen": 1, "rejected": 2}
    assert "row 0 (counting from 0): chosen is of type int" in refusal([numbers], "p.parquet")
    assert "prompt is of type bytes" in refusal([GOOD | {"prompt": b"x"}], "p.parquet")


@pytest.mark.parametrize(
    "line, expected",
    [
        (b'{"prompt": "a", ', "is not valid JSON"),
        (b'{"prompt": "a\x01b"}', "is not valid JSON: Invalid control character at"),
        (b'{"prompt": "\xff"}', "is not UTF-8 text (byte 12: 0xff)"),
        (b"[1]", "is JSON of type list, not an object"),
        (b"{}", "chosen is missing; found: nothing"),
        (b'{"prompt": "a", "chosen": "b"}', "rejected is missing; found: 'prompt', 'chosen'"),
        (b"[" * 100_000, "is not usable JSON: nested too deeply"),
    ],
)
def test_bad_line(refusal, tmp_path, line, expected):
    path = tmp_path / "p.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\n" + line + b"\n")
    assert f"p.jsonl, line 3: {expected}" in refusal(str(path))


def test_a_bad_first_line_does_not_hide_the_others(refusal, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt"\n' + json.dumps(GOOD | {"chosen": ""}).encode())
    message = refusal(str(path))
    assert "2 of 2 rows" in message and "line 1: is not valid JSON" in message and "line 2: chosen is empty" in message


def test_all_bad_rows_are_counted_and_the_first_five_shown(refusal, write_rows, load):
    rows = [GOOD if at % 100 else GOOD | {"chosen": ""} for at in range(700)]
    files = [write_rows(rows, "a.jsonl"), write_rows(rows, "b.jsonl")]
    with pytest.raises(PreferenceDataError) as caught:
        load(files)
    message = str(caught.value)
    assert message.startswith("14 of 1400 rows cannot be used") and message.endswith("... and 9 more")
    assert message.count("chosen is empty") == 5 and "a.jsonl, line 401" in message
