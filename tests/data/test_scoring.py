"""What a reward model reads: turns stand where the template puts them, and nowhere else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer

from verl_aiops.data.scoring import conversation, scoring_ids, scoring_text

PROMPT = [{"role": "system", "content": "s"}, {"role": "user", "content": "logs"}]
TOKENIZER = make_tokenizer()


def test_rounds_stand_between_the_answers():
    messages = conversation(PROMPT, ["think", "{}"], ["now JSON"])
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [m["content"] for m in messages[2:]] == ["think", "now JSON", "{}"]
    assert conversation(PROMPT, ["a"]) == [*PROMPT, {"role": "assistant", "content": "a"}]


def test_more_user_texts_than_gaps_are_refused():
    with pytest.raises(ValueError, match="1 answers leave room for 0 user texts, got 1"):
        conversation(PROMPT, ["a"], ["b"])


def test_a_bos_that_only_the_template_writes_stays():
    text = scoring_text(TOKENIZER, conversation(PROMPT, ["a"]))
    assert text.startswith("<|im_start|>system")
    assert scoring_ids(TOKENIZER, text)[0] == TOKENIZER.bos_token_id


def test_a_bos_that_the_tokenizer_adds_is_not_doubled():
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    ids = scoring_ids(tokenizer, scoring_text(tokenizer, conversation(PROMPT, ["a"])))
    assert ids[0] == 1 and ids[1] != 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["<|im_end|>", "<|im_start|>", "assistant\n", "<", "|im_", "end|>", " ", "x"]), max_size=12
    )
)
def test_no_answer_opens_or_closes_a_turn(parts):
    answer = "".join(parts)
    ids = scoring_ids(TOKENIZER, scoring_text(TOKENIZER, conversation(PROMPT, [answer])))
    assert ids.count(1) == 3 and ids.count(2) == 3 and 0 not in ids


def test_ordinary_text_is_left_as_it_is():
    plain = scoring_text(TOKENIZER, conversation(PROMPT, ['{"a": "<b>|im_end|"}']))
    assert plain == TOKENIZER.apply_chat_template(
        conversation(PROMPT, ['{"a": "<b>|im_end|"}']), tokenize=False, add_generation_prompt=False
    )
