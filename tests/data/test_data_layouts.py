"""Layouts of other tools: what was found is named, with the setting or the change that makes pairs of it."""

import json

import pytest

from verl_aiops.data import PreferenceDataError, PreferenceDataset

OPTIONS = {"max_prompt_length": 64, "max_response_length": 64, "progress": False}
MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TALK = "\n\nHuman: which host?\n\nAssistant: "

LAYOUTS = {
    "question": ({"question": "q", "chosen": "a", "rejected": "b"}, "Set data.prompt_key=question"),
    "Query": ({"Query": "q", "chosen": "a", "rejected": "b"}, "Set data.prompt_key=Query"),
    "other answers": (
        {"prompt": "q", "chosen_response": "a", "rejected_response": "b"},
        "did you mean data.chosen_key=chosen_response? did you mean data.rejected_key=rejected_response?",
    ),
    "response_j": (
        {"question": "q", "response_j": "a", "response_k": "b"},
        "Set data.chosen_key=response_j data.rejected_key=response_k",
    ),
    "worse is no misspelt chosen": (
        {"question": "q", "better": "a", "worse": "b"},
        "Set data.chosen_key=better data.rejected_key=worse data.prompt_key=question",
    ),
    "half of hh": (
        {"chosen": TALK + "h1", "rejected": TALK.replace("Human", "User") + "h2"},
        "The answers hold the dialogue too, but not all as hh-rlhf writes it",
    ),
    "ultrafeedback": ({"instruction": "q", "completions": []}, "several rated answers (UltraFeedback)"),
    "kto": ({"prompt": "q", "completion": "a", "label": True}, "one answer a row and a label (KTO)"),
    "safe rlhf": ({"prompt": "q", "response_0": "a", "response_1": "b"}, "write the better one as 'chosen'"),
    "arena": ({"conversation_a": MESSAGES, "conversation_b": MESSAGES, "winner": "a"}, "Chatbot Arena"),
    "swift": ({"messages": MESSAGES, "rejected_response": "b"}, "ms-swift"),
    "alpaca sft": ({"instruction": "q", "input": "", "output": "a"}, "DPO needs a better and a worse one"),
    "sft": ({"messages": MESSAGES}, "one conversation a row (SFT)"),
    "incidents": ({"id": "a", "symptom": "s", "incident_type": "t"}, "build-prefs --incidents"),
    "rl": ({"prompt": MESSAGES, "data_source": "x", "reward_model": {}}, "prompts of build-rl"),
    "generations": ({"rounds": [], "ground_truth": {}, "score": {}}, "build-prefs --from-generations"),
    "metrics": ({"step": 1, "data": {}}, "metrics of a run"),
    "an error": ({"error": "Repository not found"}, "a server's message about an error"),
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("row, said", LAYOUTS.values(), ids=LAYOUTS)
def test_a_known_layout_is_named_with_what_mends_it(write_rows, tokenizer, row, said, suffix):
    row = {name: value or "x" for name, value in row.items()}  # parquet has no empty objects
    path = write_rows([row], f"a.{suffix}")
    with pytest.raises(PreferenceDataError) as error:
        PreferenceDataset(path, tokenizer, **OPTIONS)
    message = str(error.value)
    assert said in message and path in message
    if not {"chosen", "rejected"} <= row.keys():
        assert all(repr(name) in message for name in row)  # the columns found


def test_the_setting_that_is_named_reads_the_file(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "q", "response_j": "a", "response_k": "b"}) + "\n")
    keys = {"prompt_key": "question", "chosen_key": "response_j", "rejected_key": "response_k"}
    assert len(PreferenceDataset(str(tmp_path / "a.jsonl"), tokenizer, **OPTIONS, **keys)) == 1


def test_nothing_is_guessed_of_columns_that_say_nothing(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text(json.dumps({"x": 1, "y": 2}) + "\n")
    with pytest.raises(PreferenceDataError) as error:
        PreferenceDataset(str(tmp_path / "a.jsonl"), tokenizer, **OPTIONS)
    assert str(error.value).endswith("found: 'x', 'y'.")
