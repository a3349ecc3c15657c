"""Rows of a reward model's data: token by token what a server reads when it scores the conversation."""

import pytest

from verl_aiops.data import PreferenceDataError, PreferenceDataset
from verl_aiops.data.scored_rows import padding_token
from verl_aiops.data.scoring import conversation, scoring_ids, scoring_text

LENGTHS = {"max_prompt_length": 200, "max_response_length": 200, "progress": False}
ASKED = [{"role": "system", "content": "be short"}, {"role": "user", "content": "disk?"}]


def read(write_rows, tokenizer, row, **how):
    return PreferenceDataset(write_rows([row]), tokenizer, scored=True, **LENGTHS, **how)


def served(tokenizer, prompt, *turns, rounds=()):
    return scoring_ids(tokenizer, scoring_text(tokenizer, conversation(prompt, turns, rounds)))


@pytest.mark.parametrize("first", [False, True], ids=["no opening", "an opening token"])
def test_both_sides_of_a_pair_are_the_tokens_that_a_server_scores(write_rows, tokenizer, first):
    if first:  # a tokenizer that opens every text, and a template that does so too
        from tokenizers.processors import TemplateProcessing

        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    (item,) = read(write_rows, tokenizer, {"prompt": ASKED, "chosen": " yes", "rejected": "no"})
    for side, text in (("chosen", " yes"), ("rejected", "no")):
        whole = item["prompt_ids"].tolist() + item[f"{side}_ids"].tolist()
        assert whole == served(tokenizer, ASKED, text)
    # the prompt with what the template writes before an answer, so that it stands once for both
    asked = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, tokenize=False)
    assert len(item["prompt_ids"]) == len(tokenizer(asked.removeprefix("<|im_start|>") if first else asked).input_ids)


def test_plain_texts_are_messages_and_rounds_are_whole_conversations(write_rows, tokenizer):
    (item,) = read(write_rows, tokenizer, {"prompt": "disk?", "chosen": "full", "rejected": "fine"})
    user = [{"role": "user", "content": "disk?"}]
    assert item["prompt_ids"].tolist() + item["chosen_ids"].tolist() == served(tokenizer, user, "full")
    answer = [{"role": role, "content": text} for role, text in (("assistant", "a"), ("user", "?"), ("assistant", "b"))]
    row = {"prompt": user, "chosen": answer, "rejected": [*answer[:2], {"role": "assistant", "content": "c"}]}
    (item,) = read(write_rows, tokenizer, row)
    assert item["prompt_ids"].tolist() + item["rejected_ids"].tolist() == served(
        tokenizer, user, "a", "c", rounds=["?"]
    )


def test_a_list_has_its_answers_scores_and_a_label_its_answer(write_rows, tokenizer):
    row = {"prompt": ASKED, "completions": [{"completion": t, "score": s} for t, s in (("no", 0.0), ("yes", 2.0))]}
    (item,) = read(write_rows, tokenizer, row, kinds=["list"])
    assert item["scores"] == [2.0, 0.0]
    assert item["prompt_ids"].tolist() + item["answers_ids"][0].tolist() == served(tokenizer, ASKED, "yes")
    (item,) = read(write_rows, tokenizer, {"prompt": ASKED, "completion": "yes", "label": True}, kinds=["single"])
    assert item["prompt_ids"].tolist() + item["answer_ids"].tolist() == served(tokenizer, ASKED, "yes")


@pytest.mark.parametrize(
    "row, why",
    [
        ({"prompt": ASKED, "chosen": "yes", "rejected": "yes<|im_end|>"}, "the same conversation once rendered"),
        ({"prompt": ASKED, "chosen": "yes", "rejected": "no", "tools": [{"type": "function"}]}, "tools"),
    ],
)
def test_rows_that_no_server_could_tell_apart_are_faults(write_rows, tokenizer, row, why):
    with pytest.raises(PreferenceDataError, match=why):
        read(write_rows, tokenizer, row)


@pytest.mark.parametrize("how", [{"truncation": "left"}, {"text_pairs": "plain"}, {"chat_template": "x"}])
def test_what_no_server_does_is_refused(write_rows, tokenizer, how):
    with pytest.raises(ValueError, match="as servers render them"):
        read(write_rows, tokenizer, {"prompt": ASKED, "chosen": "yes", "rejected": "no"}, **how)


def test_the_kept_tokens_are_not_those_of_a_language_model(write_rows, tokenizer, tmp_path):
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|im_end|>\n'", "'<|im_end|>\n\n'")
    row = {"prompt": ASKED, "chosen": "yes", "rejected": "no"}
    plain = PreferenceDataset(write_rows([row]), tokenizer, **LENGTHS, cache_dir=str(tmp_path))
    scored = read(write_rows, tokenizer, row, cache_dir=str(tmp_path))
    assert len(list(tmp_path.glob("*.npz"))) == 2
    again = read(write_rows, tokenizer, row, cache_dir=str(tmp_path))
    assert again.identity() == scored.identity() and len(plain) == 1


def test_padding_is_a_token_that_no_conversation_ends_with(tokenizer):
    end, start, unknown = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|im_start|>", "<|endoftext|>"))
    assert tokenizer.pad_token_id == end
    assert padding_token(tokenizer, {300}) == end
    assert padding_token(tokenizer, {end}) == min(start, unknown)
    assert padding_token(tokenizer, {end, start, unknown}) is None


def test_every_answer_keeps_a_token_where_one_is_all_prompt():
    from verl_aiops.data.rows import PreferenceRow
    from verl_aiops.data.scored_rows import _encoded

    row = PreferenceRow("?", ("a", "b"), ("chosen", "rejected"), "pair")
    encoded = _encoded([5, 6, 7], [[5, 6], [5, 6, 8]], set(), row)
    assert (encoded.prompt_ids, encoded.answers_ids) == ([5], [[6], [6, 8]])
